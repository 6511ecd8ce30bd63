"""Measured latencies of many candidates of one network on one device: the data set an LPNet is trained on.

A profile set is a text file of JSON lines: a header, then one line for each measurement in the order they
were taken. `latency.journal` writes it; here it is read, checked and turned into arrays.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.clock import Clock
from latency.errors import InputError, ProfileError
from latency.pace import pace_exponent
from latency.profile_rows import ProfileHeader, ProfileRow, RowKey, Split
from latency.structure import IntArray
from latency.visits import LEAST_REPEATABILITY, half_width, repeatability, visit_stderr

FloatArray = npt.NDArray[np.float64]
Round = tuple[tuple[int, ...], ...]
# Rows whose reference medians make the device's clock: some 10 s of measuring, longer than most disturbances.
REFERENCE_ROWS = 50
# Networks measured twice that it takes to say how far visits lie apart.
_FEWEST_VISITS = 10
# Rows in a window of the reference's running median.
_DRIFT_WINDOW = 10


@dataclass(frozen=True, slots=True)
class ProfileArrays:
    """Measured candidates of one split; held-out ones are the means of their passes.

    Attributes:
        widths: width vectors, [n, n_groups].
        latency_ms: latency by the device's clock, [n].
        relative_stderr: standard error of each latency relative to it, [n].
    """

    widths: IntArray
    latency_ms: FloatArray
    relative_stderr: FloatArray


@dataclass(frozen=True, slots=True)
class ReferenceDrift:
    """How the reference's own latency moved during the profile, relative to `ProfileSet.reference_ms`.

    Attributes:
        low: lowest running median (over 10 rows) minus 1, such as -0.03.
        high: highest running median minus 1.
        last: last running median minus 1.
    """

    low: float
    high: float
    last: float


@dataclass(frozen=True, slots=True)
class DeviceReference:
    """The reference on one of several devices of a kind.

    Attributes:
        device: name of the device.
        n_rows: measurements taken there.
        reference_ms: median of the reference's latency there.
        offset: that relative to `ProfileSet.reference_ms`, minus 1.
        spread: half the distance between the 10 % and 90 % quantiles, relative to the median.
    """

    device: str
    n_rows: int
    reference_ms: float
    offset: float
    spread: float


@dataclass(frozen=True)
class ProfileSet:
    """Measurements of candidates of one network on one device.

    Attributes:
        header: what they have in common.
        rows: measurements and failures in the order they were taken.
        fixed_reference_ms: the device's clock once it is fixed, None before, see `reference_ms`.
        rounds: width vectors that each active round chose to train on, see `latency.active`.
    """

    header: ProfileHeader
    rows: tuple[ProfileRow, ...]
    fixed_reference_ms: float | None = None
    rounds: tuple[Round, ...] = ()

    def __post_init__(self) -> None:
        n_groups = len(self.header.full_widths)
        wrong = [row for row in self.rows if len(row.widths) != n_groups]
        if wrong:
            raise ProfileError(f"A row has {len(wrong[0].widths)} widths, the profile {n_groups} groups.")

    @property
    def ok_rows(self) -> tuple[ProfileRow, ...]:
        """Measurements that succeeded."""
        return tuple(row for row in self.rows if row.status == "ok")

    @property
    def failed_rows(self) -> tuple[ProfileRow, ...]:
        """Candidates that could not be measured, with their errors."""
        return tuple(row for row in self.rows if row.status == "failed")

    @functools.cached_property
    def reference_ms(self) -> float:
        """Latency of the reference, the unpruned network: the device's clock, by which ratios become ms.

        Fixed by the first rows and written to the file, so that it stays when the profile is extended.

        Raises:
            ProfileError: nothing has been measured yet.
        """
        if self.fixed_reference_ms is not None:
            return self.fixed_reference_ms
        medians = [row.reference_ms for row in self.ok_rows[:REFERENCE_ROWS]]
        if not medians:
            raise ProfileError(
                f"The profile has no successful measurement ({len(self.failed_rows)} failed), "
                "so no latency in ms."
            )
        return float(np.median(medians))

    @functools.cached_property
    def pace_exponent(self) -> float:
        """How the ratios move with the machine's pace, see `latency.pace`; 0 where that is not known."""
        visits = self._visited_again()
        ratios = [np.array([row.ratio for row in rows]) for rows in visits]
        paces = [np.array([self._pace(row) for row in rows]) for rows in visits]
        return pace_exponent(ratios, paces)

    @functools.cached_property
    def clock(self) -> Clock:
        """What turns measured ratios into milliseconds of the device."""
        return Clock(self.reference_ms, self.pace_exponent)

    def arrays(self, split: Split) -> ProfileArrays:
        """The split's candidates that were measured, in the order of their first measurement.

        Latencies are corrected to the pace of the device's clock; of several passes the median counts. Their
        standard errors are those of whole visits (`visit_stderr`): pairs in a row share the machine's mood. Of what the
        pairs of a single visit show half counts, since so few hardly know how far they scatter.
        """
        passes = [rows for rows in self._by_candidate() if rows[0].split == split]
        latency_ms = [np.median([self._settled_ms(row) for row in rows]) for rows in passes]
        stderrs = [math.sqrt(sum(map(self._visit_variance, rows))) / len(rows) for rows in passes]
        n_groups = len(self.header.full_widths)
        return ProfileArrays(
            widths=np.array([rows[0].widths for rows in passes], dtype=np.int64).reshape(-1, n_groups),
            latency_ms=np.array(latency_ms, dtype=np.float64),
            relative_stderr=np.array(stderrs, dtype=np.float64),
        )

    def _visit_variance(self, row: ProfileRow) -> float:
        """Square of the relative standard error of one visit."""
        beyond_pairs = max((self.visit_stderr or 0.0) ** 2 - self._pair_variance, 0.0)
        return beyond_pairs + (row.ratio_stderr**2 + self._pair_variance) / 2

    @functools.cached_property
    def _pair_variance(self) -> float:
        """What the pairs of a typical visit show of it."""
        return float(np.median([row.ratio_stderr**2 for row in self.ok_rows]))

    @functools.cached_property
    def visit_stderr(self) -> float | None:
        """Standard error of one visit to a network, at the clock's pace, relative; None where hardly any is known.

        See `visit_stderr`.
        """
        visits = self._log_ms_of_visits
        return None if len(visits) < _FEWEST_VISITS else visit_stderr(visits)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of a network's latency, relative: what one measurement of it is worth.

        Of networks visited as often as half of them were; None where hardly any was visited twice. See `half_width`.
        """
        visits = self._log_ms_of_visits
        if len(visits) < _FEWEST_VISITS:
            return None
        return half_width(visits, int(np.median([len(rows) for rows in visits])))

    @property
    def visit_seconds(self) -> float | None:
        """What a visit takes, all included: the median time between two measurements; None of fewer than two."""
        seconds = np.diff([row.measured_at for row in self.ok_rows])
        return float(np.median(seconds)) if len(seconds) else None

    @property
    def noise_floor_mape(self) -> float | None:
        """Mean absolute error of one pass over held-out candidates against the mean of all, 0.01 is 1 %.

        No predictor can be shown to be better than this; None where nothing was measured twice.
        """
        held_out = [rows for rows in self._visited_again() if rows[0].split == "held_out"]
        passes = [[self._settled_ms(row) for row in rows] for rows in held_out]
        errors = [abs(one_ms / np.mean(all_ms) - 1) for all_ms in passes for one_ms in all_ms]
        return float(np.mean(errors)) if errors else None

    def repeatability(self, latency_ms: float, n_visits: int = 1) -> float:
        """How far two measurements of a network of about this latency lie apart, minutes apart, on this device.

        Relative; 95 % are closer. From the half of the candidates whose latency is nearest; `LEAST_REPEATABILITY` where
        nothing was measured twice. Latencies are those at the pace of the device's clock, as a certificate's are. See
        `latency.visits.repeatability`.

        Args:
            latency_ms: latency by the device's clock.
            n_visits: visits that each of the two measurements is the median of, each in a session of its own.
        """
        visits = self._log_ms_of_visits
        if not visits:
            return LEAST_REPEATABILITY
        distances = [abs(float(np.mean(log_ms)) - math.log(latency_ms)) for log_ms in visits]
        half = np.sort(np.argsort(distances, kind="stable")[: max(1, len(visits) // 2)])  # in order of time
        return repeatability([visits[index] for index in half], n_visits)

    @property
    def _log_ms_of_visits(self) -> list[FloatArray]:
        """Logarithms of the latencies, at the clock's pace, of each network that was visited twice or more."""
        return [np.log([self._settled_ms(row) for row in rows]) for rows in self._visited_again()]

    def _visited_again(self) -> list[list[ProfileRow]]:
        """Measurements of the candidates that were measured twice or more, in order of time."""
        return [rows for rows in self._by_candidate() if len(rows) > 1]

    def _by_candidate(self) -> list[list[ProfileRow]]:
        """Measurements of each candidate, in order of time."""
        passes: dict[tuple[str, tuple[int, ...]], list[ProfileRow]] = {}
        for row in self.ok_rows:
            passes.setdefault((row.split, row.widths), []).append(row)
        return list(passes.values())

    def _pace(self, row: ProfileRow) -> float:
        """Logarithm of how much slower the machine was than by its clock."""
        return math.log(row.reference_ms / self.reference_ms)

    def _settled_ms(self, row: ProfileRow) -> float:
        return self.clock.latency_ms(row.ratio, row.reference_ms)

    @property
    def reference_drift(self) -> ReferenceDrift:
        """How far the reference's running median strayed from `reference_ms`."""
        medians = np.array([row.reference_ms for row in self.ok_rows]) / self.reference_ms
        size = min(_DRIFT_WINDOW, medians.size)
        running = np.median(np.lib.stride_tricks.sliding_window_view(medians, size), axis=1) - 1
        return ReferenceDrift(low=float(running.min()), high=float(running.max()), last=float(running[-1]))

    @property
    def by_device(self) -> tuple[DeviceReference, ...]:
        """How the devices of a fleet differ, by name; empty where the rows name none."""
        medians: dict[str, list[float]] = {}
        for row in self.ok_rows:
            if row.device:
                medians.setdefault(row.device, []).append(row.reference_ms)
        found = []
        for device, reference_ms in sorted(medians.items()):
            low, median, high = np.quantile(reference_ms, (0.1, 0.5, 0.9)).tolist()
            offset, spread = median / self.reference_ms - 1, (high - low) / (2 * median)
            found.append(DeviceReference(device, len(reference_ms), median, offset, spread))
        return tuple(found)

    @property
    def digest(self) -> str:
        """Hash of header, rows and clock, 16 hexadecimal digits: which data an LPNet was trained on."""
        lines = [self.header.to_json(), *(row.to_json() for row in self.rows), self.fixed_reference_ms]
        text = "\n".join(json.dumps(line, sort_keys=True) for line in lines)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_profile(path: Path) -> ProfileSet:
    """The profile set in the file, also while it is being written: a torn last line is left out.

    Raises:
        ProfileError: the file is missing, empty or damaged; the message says in which line.
    """
    if not path.is_file():
        raise ProfileError(f"There is no profile set {path}; make it with `trimms profile`.")
    profile = parse_profile(path.read_bytes(), path)
    if profile is None:
        raise ProfileError(f"{path} is empty: profiling ended before its first line; run it again.")
    return profile


def parse_profile(content: bytes, path: Path) -> ProfileSet | None:
    """The profile set in a file's content up to its last complete line, None where there is none.

    Raises:
        ProfileError: a line is damaged or double; the message says which.
    """
    header: ProfileHeader | None = None
    rows: dict[RowKey, ProfileRow] = {}
    reference_ms: float | None = None
    rounds: list[Round] = []
    for number, record in _records(content, path):
        try:
            if header is None:
                header = ProfileHeader.from_json(record)
            elif record["kind"] == "reference":
                reference_ms = float(record["reference_ms"])
            elif record["kind"] == "round":
                rounds.append(tuple(tuple(int(width) for width in widths) for widths in record["widths"]))
            else:
                row = ProfileRow.from_json(record)
                if row.key in rows:
                    raise ProfileError(f"widths {list(row.widths)} were there before")
                if len(row.widths) != len(header.full_widths):
                    raise ProfileError(
                        f"{len(row.widths)} widths, the header has {len(header.full_widths)} groups"
                    )
                rows[row.key] = row
        except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
            raise _damaged(path, number, error) from error
    return ProfileSet(header, tuple(rows.values()), reference_ms, tuple(rounds)) if header else None


def _records(content: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    complete = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(complete.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also what is no UTF-8
            raise _damaged(path, number, error) from error
        if not isinstance(record, dict):
            raise _damaged(path, number, ProfileError(f"{record!r} is no JSON object"))
        yield number, record


def _damaged(path: Path, number: int, error: Exception) -> ProfileError:
    reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
    return ProfileError(
        f"{path}, line {number}: {reason}. Take that line out (not the first one) to keep the other "
        "measurements, or profile into another file."
    )
