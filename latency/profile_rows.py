"""The lines of a profile set: what all measurements have in common, and one measurement."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from latency.device import DeviceFingerprint, DeviceSettings
from latency.errors import ProfileError
from latency.grid import Grid
from latency.measure import PairedMeasurement, Protocol
from latency.probe import ProbeResult
from latency.space import SearchSpace

Split = Literal["train", "held_out"]
Status = Literal["ok", "failed"]
RowKey = tuple[tuple[int, ...], Split, int]

# 1: first version. Rows measured by a fleet name their `device`, others have no such entry. A line of the kind "round"
# tells which networks an active round chose; profiles without such rounds have none.
FORMAT_VERSION = 1
FORMAT_NAME = "trimms profile"


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

    @classmethod
    def of_space(
        cls,
        space: SearchSpace,
        grid: Grid,
        fingerprint: DeviceFingerprint,
        protocol: Protocol,
        *,
        seed: int = 0,
        probe: ProbeResult | None = None,
    ) -> "ProfileHeader":
        """The header of a profile of this search space."""
        return cls(
            fingerprint=fingerprint,
            protocol=protocol,
            structure_hash=space.structure_hash,
            group_names=tuple(group.name for group in space.groups),
            full_widths=tuple(int(width) for width in space.full_widths),
            grid=grid,
            seed=seed,
            probe=probe,
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
        pass_index: 0 for the first measurement of the candidate, 1 for the second, …
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
        device: name of the device among several of one kind; empty where there was only one.
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
    device: str = ""

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
        device: str = "",
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
            device=device,
            **values,
        )

    @property
    def key(self) -> RowKey:
        """What a profile set holds at most once: widths, split, pass."""
        return self.widths, self.split, self.pass_index

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, without what a failed measurement has no value for."""
        fields = dataclasses.asdict(self)
        if not self.device:
            del fields["device"]
        known = {name: value for name, value in fields.items() if value == value}
        return {"kind": "row", **known, "widths": list(self.widths), "ratios": list(self.ratios)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProfileRow":
        """The row that `to_json` gave."""
        fields = {name: value for name, value in record.items() if name != "kind"}
        fields["widths"] = tuple(int(width) for width in record["widths"])
        fields["ratios"] = tuple(record["ratios"])
        return cls(**fields)
