"""Measured latencies of many candidates of one network on one device: the data set an LPNet is trained on.

A profile set is a text file of JSON lines: a header, then one line for each measurement in the order they
were taken. `latency.journal` writes it; here it is read, checked and turned into arrays.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from latency.device import DeviceFingerprint, DeviceSettings
from latency.errors import InputError, ProfileError
from latency.grid import Grid
from latency.measure import PairedMeasurement, Protocol
from latency.probe import ProbeResult
from latency.structure import IntArray

FloatArray = npt.NDArray[np.float64]
Split = Literal["train", "held_out"]
Status = Literal["ok", "failed"]
RowKey = tuple[tuple[int, ...], Split, int]

# 1: first version.
FORMAT_VERSION = 1
FORMAT_NAME = "trimms profile"
# Rows whose reference medians make the device's clock: some 10 s of measuring, longer than most disturbances.
REFERENCE_ROWS = 50
LEAST_REPEATABILITY = 0.01
"""Where a session's memory lies moves a network's latency by about this share, however quiet the device."""
# Rows in a window of the reference's running median.
_DRIFT_WINDOW = 10


@dataclass(frozen=True, slots=True)
class ProfileHeader:
    """What every row of a profile set has in common.

    Attributes:
        fingerprint: the device, its settings included.
        protocol: how each pair is measured.
        structure_hash: the network, see `latency.space.SearchSpace`.
        group_names: channel groups in the order of the width vector.
        full_widths: their widths in the reference network, the unpruned one.
        grid: widths that candidates take.
        seed: seed of the choice of candidates.
        probe: what the grid's step was found from; None where the grid was given.
    """

    fingerprint: DeviceFingerprint
    protocol: Protocol
    structure_hash: str
    group_names: tuple[str, ...]
    full_widths: tuple[int, ...]
    grid: Grid
    seed: int
    probe: ProbeResult | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.group_names), len(self.full_widths), len(self.grid.allowed)}
        if len(sizes) != 1:
            raise ProfileError(
                f"A profile needs as many group names ({len(self.group_names)}) as full widths "
                f"({len(self.full_widths)}) and groups in the grid ({len(self.grid.allowed)})."
            )

    @property
    def settings(self) -> DeviceSettings:
        """Provider, threads, batch size, precision."""
        return self.fingerprint.settings

    def to_json(self) -> dict[str, Any]:
        """The header as a JSON object."""
        return {
            "kind": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint.to_json(),
            "protocol": self.protocol.to_json(),
            "structure_hash": self.structure_hash,
            "group_names": list(self.group_names),
            "full_widths": list(self.full_widths),
            "grid": self.grid.to_json(),
            "seed": self.seed,
            "probe": self.probe.to_json() if self.probe else None,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProfileHeader":
        """The header that `to_json` gave.

        Raises:
            ProfileError: the record is no header, or of a later version.
        """
        if record.get("kind") != FORMAT_NAME:
            raise ProfileError(f"this is no profile set: kind is {record.get('kind')!r}, not {FORMAT_NAME!r}")
        if record["version"] != FORMAT_VERSION:
            raise ProfileError(
                f"format version {record['version']} is not known here (known: {FORMAT_VERSION}); "
                "update trimms"
            )
        return cls(
            fingerprint=DeviceFingerprint.from_json(record["fingerprint"]),
            protocol=Protocol.from_json(record["protocol"]),
            structure_hash=record["structure_hash"],
            group_names=tuple(record["group_names"]),
            full_widths=tuple(int(width) for width in record["full_widths"]),
            grid=Grid.from_json(record["grid"]),
            seed=record["seed"],
            probe=ProbeResult.from_json(record["probe"]) if record["probe"] else None,
        )


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One measurement of one candidate, or its failure.

    Attributes:
        widths: canonical width vector, [n_groups].
        split: "train", or "held_out" for judging predictors only.
        pass_index: 0, and 1 for the second measurement of a held-out candidate.
        status: "ok" or "failed".
        error: what failed, empty otherwise.
        ratio: the candidate's latency over the reference's; this and the rest is NaN, 0 or empty on failure.
        ratio_stderr: its relative standard error.
        candidate_ms: median latency during the measurement; the device's clock is `ProfileSet.reference_ms`.
        reference_ms: the reference's median latency during the measurement.
        candidate_p90_ms: 90 % quantile of the candidate's samples.
        reference_p90_ms: 90 % quantile of the reference's samples.
        n_pairs: number of ratios.
        n_preempted: samples during which the core was taken away.
        converged: whether the precision asked for was reached.
        build_ms: time to make the candidate and its session, no part of its latency.
        measured_at: end of the measurement, seconds since 1970.
        ratios: the raw ratios, [n_pairs].
    """

    widths: tuple[int, ...]
    split: Split
    pass_index: int
    status: Status
    error: str = ""
    ratio: float = math.nan
    ratio_stderr: float = math.nan
    candidate_ms: float = math.nan
    reference_ms: float = math.nan
    candidate_p90_ms: float = math.nan
    reference_p90_ms: float = math.nan
    n_pairs: int = 0
    n_preempted: int = 0
    converged: bool = False
    build_ms: float = math.nan
    measured_at: float = math.nan
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in get_args(Split) or self.status not in get_args(Status):
            raise ProfileError(f"split {self.split!r} or status {self.status!r} is unknown")
        numbers = (self.ratio, self.candidate_ms, self.reference_ms)
        if self.status == "ok" and not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ProfileError(f"ratio and latencies must be above 0, got {numbers}")

    @classmethod
    def measured(
        cls,
        widths: Sequence[int],
        split: Split,
        pass_index: int,
        measurement: PairedMeasurement,
        *,
        build_ms: float,
        measured_at: float,
    ) -> "ProfileRow":
        """Row of a measurement that succeeded."""
        names = {field.name for field in dataclasses.fields(cls)} - {"ratios"}
        values = {name: getattr(measurement, name) for name in names if hasattr(measurement, name)}
        return cls(
            widths=tuple(widths),
            split=split,
            pass_index=pass_index,
            status="ok",
            build_ms=round(build_ms, 3),
            measured_at=round(measured_at, 3),
            ratios=tuple(round(ratio, 6) for ratio in measurement.ratios),
            **values,
        )

    @property
    def key(self) -> RowKey:
        """What a profile set holds at most once: widths, split, pass."""
        return self.widths, self.split, self.pass_index

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, without what a failed measurement has no value for."""
        fields = dataclasses.asdict(self)
        known = {name: value for name, value in fields.items() if value == value}
        return {"kind": "row", **known, "widths": list(self.widths), "ratios": list(self.ratios)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProfileRow":
        """The row that `to_json` gave."""
        fields = {name: value for name, value in record.items() if name != "kind"}
        fields["widths"] = tuple(int(width) for width in record["widths"])
        fields["ratios"] = tuple(record["ratios"])
        return cls(**fields)


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


@dataclass(frozen=True)
class ProfileSet:
    """Measurements of candidates of one network on one device.

    Attributes:
        header: what they have in common.
        rows: measurements and failures in the order they were taken.
        fixed_reference_ms: the device's clock once it is fixed, None before, see `reference_ms`.
    """

    header: ProfileHeader
    rows: tuple[ProfileRow, ...]
    fixed_reference_ms: float | None = None

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

    def arrays(self, split: Split) -> ProfileArrays:
        """The split's candidates that were measured, in the order of their first measurement."""
        passes: dict[tuple[int, ...], list[ProfileRow]] = {}
        for row in self.ok_rows:
            if row.split == split:
                passes.setdefault(row.widths, []).append(row)
        ratios = [np.mean([row.ratio for row in rows]) for rows in passes.values()]
        stderrs = [_stderr_of_mean([row.ratio_stderr for row in rows]) for rows in passes.values()]
        n_groups = len(self.header.full_widths)
        return ProfileArrays(
            widths=np.array(list(passes), dtype=np.int64).reshape(-1, n_groups),
            latency_ms=np.array(ratios, dtype=np.float64) * (self.reference_ms if passes else 1.0),
            relative_stderr=np.array(stderrs, dtype=np.float64),
        )

    @property
    def noise_floor_mape(self) -> float | None:
        """Mean absolute error of one pass over held-out candidates against the mean of both, 0.01 is 1 %.

        No predictor can be shown to be better than this; None where nothing was measured twice.
        """
        errors = [abs(ratios[0] / np.mean(ratios) - 1) for ratios in self._held_out_passes()]
        return float(np.mean(errors)) if errors else None

    def repeatability(self, latency_ms: float) -> float:
        """How far two measurements of a network of about this latency lie apart, minutes apart, on this device.

        Relative; 95 % are closer, if the differences are normal: 1.96 / 0.6745 times the median difference of
        the two passes, over the half of the held-out candidates whose latency is nearest; `LEAST_REPEATABILITY`
        where that is less, or nothing was measured twice.
        """
        passes = self._held_out_passes()
        if not passes:
            return LEAST_REPEATABILITY
        wanted = latency_ms / self.reference_ms
        nearest = sorted(passes, key=lambda ratios: abs(float(np.log(np.mean(ratios) / wanted))))
        half = nearest[: max(1, len(nearest) // 2)]
        differences = [abs(ratios[0] / ratios[1] - 1) for ratios in half]
        return max(LEAST_REPEATABILITY, float(1.96 / 0.6745 * np.median(differences)))

    def _held_out_passes(self) -> list[list[float]]:
        """Ratios of the held-out candidates that were measured twice."""
        passes: dict[tuple[int, ...], list[float]] = {}
        for row in self.ok_rows:
            if row.split == "held_out":
                passes.setdefault(row.widths, []).append(row.ratio)
        return [ratios for ratios in passes.values() if len(ratios) > 1]

    @property
    def reference_drift(self) -> ReferenceDrift:
        """How far the reference's running median strayed from `reference_ms`."""
        medians = np.array([row.reference_ms for row in self.ok_rows]) / self.reference_ms
        size = min(_DRIFT_WINDOW, medians.size)
        running = np.median(np.lib.stride_tricks.sliding_window_view(medians, size), axis=1) - 1
        return ReferenceDrift(low=float(running.min()), high=float(running.max()), last=float(running[-1]))

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
    for number, record in _records(content, path):
        try:
            if header is None:
                header = ProfileHeader.from_json(record)
            elif record["kind"] == "reference":
                reference_ms = float(record["reference_ms"])
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
    return ProfileSet(header, tuple(rows.values()), reference_ms) if header else None


def _records(content: bytes, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    complete = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(complete.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:  # also what is no UTF-8
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


def _stderr_of_mean(stderrs: Sequence[float]) -> float:
    return math.sqrt(sum(stderr**2 for stderr in stderrs)) / len(stderrs)
