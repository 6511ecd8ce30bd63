"""The certificate: what was asked for, what was measured, and everything needed to measure it again.

One JSON file beside the pruned network. It is plain data: reading it needs neither torch nor the model.
`within_budget` and `speedup` are worked out from the measurement, never stored on their own; a file in
which they disagree with it is refused as damaged.
"""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from latency.clock import Clock
from pruning.errors import InputError
from pruning.files import file_sha256, write_atomically
from pruning.records import decode_record, require

# 1: first version.
FORMAT_VERSION = 1

CERTIFIED_FILES = ("base.onnx", "pruned.onnx", "plan.json", "pruned.safetensors")
"""Files of a run directory whose contents a certificate vouches for."""

RECORDED_PACKAGES = ("trimms", "torch", "torchvision", "onnx", "onnxruntime")
"""Packages whose versions can change a result."""


@dataclass(frozen=True, slots=True)
class LatencySpread:
    """Raw latency of one network over the runs of a measurement.

    Attributes:
        median_ms: median, in ms.
        p90_ms: 90th percentile, in ms.
    """

    median_ms: float
    p90_ms: float

    def __post_init__(self) -> None:
        """Refuse values that no clock returns."""
        _check_positive("median_ms", self.median_ms)
        _check_positive("p90_ms", self.p90_ms)


@dataclass(frozen=True, slots=True)
class InterleavedRun:
    """The run in which dense and pruned network were measured alternately, as the clock showed it.

    Attributes:
        dense: spread of the dense network.
        pruned: spread of the pruned network.
        n_pairs: number of dense/pruned pairs.
        reference_drift: by how much the reference network ran slower than when the device was profiled,
            relative: 0.03 is 3 % slower, -0.03 is 3 % faster.
        pace_exponent: g by which the measured ratio q was brought to the pace of the device's clock,
            q^(1 + g log(1 + `reference_drift`)), see `latency.pace`; 0 leaves it as it was.
    """

    dense: LatencySpread
    pruned: LatencySpread
    n_pairs: int
    reference_drift: float
    pace_exponent: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a run without pairs, and a drift and an exponent that are no numbers."""
        _check_positive("n_pairs", self.n_pairs)
        for name in ("reference_drift", "pace_exponent"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")


@dataclass(frozen=True, slots=True)
class RuntimeRecord:
    """ONNX Runtime as it was used.

    Attributes:
        version: its version.
        options: session options by name.
    """

    version: str
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class CertifiedSettings:
    """The conditions that the milliseconds and the accuracy hold under.

    Attributes:
        provider: ONNX Runtime execution provider.
        threads: intra-operator threads.
        batch_size: images per call.
        input_size: shape of the network's input, (batch, channels, height, width).
        mean: subtracted from each colour channel of images in [0, 1].
        std: divided by afterwards, per colour channel.
    """

    provider: str
    threads: int
    batch_size: int
    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Evidence for one pruned network on one device.

    Attributes:
        budget_ms: latency asked for, in ms.
        dense_ms: latency of the dense network, in ms of the device's profile.
        predicted_ms: LPNet's latency for the pruned network's widths, in ms.
        measured_ms: measured latency of the pruned network with its trained weights, in ms, at the pace at which
            `dense_ms` is the dense network's.
        measured_ci_ms: confidence interval of `measured_ms`, (low, high), in ms.
        dense_accuracy: top-1 accuracy of the dense network on held-out images, in [0, 1].
        accuracy: top-1 accuracy of the pruned network on the same images, in [0, 1].
        dense_macs: multiply-accumulates of one call of the dense network.
        macs: multiply-accumulates of one call of the pruned network.
        dense_params: parameters of the dense network.
        params: parameters of the pruned network.
        interleaved: raw spread of the run that `measured_ms` comes from.
        device: fingerprint of the device, as plain JSON values.
        device_digest: digest over the fingerprint's stable fields.
        runtime: ONNX Runtime's version and session options.
        settings: conditions of the measurement.
        seeds: random seeds by use.
        versions: package versions by name, and "python".
        sha256: SHA-256, in hex, of each of `CERTIFIED_FILES`, and of further files if wanted.
        created: time of writing, ISO 8601 in UTC.
        format_version: version of the file format.
    """

    budget_ms: float
    dense_ms: float
    predicted_ms: float
    measured_ms: float
    measured_ci_ms: tuple[float, float]
    dense_accuracy: float
    accuracy: float
    dense_macs: int
    macs: int
    dense_params: int
    params: int
    interleaved: InterleavedRun
    device: dict[str, Any]
    device_digest: str
    runtime: RuntimeRecord
    settings: CertifiedSettings
    seeds: dict[str, int]
    versions: dict[str, str]
    sha256: dict[str, str]
    created: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse values that cannot be evidence of anything."""
        require(
            self.format_version == FORMAT_VERSION, "format_version", self.format_version, f"{FORMAT_VERSION}"
        )
        for name in ("budget_ms", "dense_ms", "predicted_ms", "measured_ms", "dense_macs", "macs"):
            _check_positive(name, getattr(self, name))
        for name in ("dense_accuracy", "accuracy"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a share in [0, 1]")
        low_ms, high_ms = self.measured_ci_ms
        encloses = 0 < low_ms <= self.measured_ms <= high_ms < math.inf
        require(encloses, "measured_ci_ms", self.measured_ci_ms, f"an interval around {self.measured_ms} ms")
        missing = [name for name in CERTIFIED_FILES if name not in self.sha256]
        require(not missing, "sha256", sorted(self.sha256), f"a hash of {', '.join(missing)} as well")
        require(_is_utc(self.created), "created", self.created, "an ISO 8601 time in UTC")

    @property
    def clock(self) -> Clock:
        """What turns measured ratios into milliseconds as they are certified."""
        return Clock(self.dense_ms, self.interleaved.pace_exponent)

    @property
    def within_budget(self) -> bool:
        """Whether the measured latency is within the budget."""
        return self.measured_ms <= self.budget_ms

    @property
    def speedup(self) -> float:
        """Dense latency over measured latency."""
        return self.dense_ms / self.measured_ms

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values, with `within_budget` and `speedup` worked out."""
        derived = {"within_budget": self.within_budget, "speedup": self.speedup}
        return {"format_version": self.format_version, **derived, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the certificate as JSON; a reader sees the old file or the new one, never half of it.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a certificate and check that it agrees with itself.

        Raises:
            InputError: there is no such file, or it is damaged, or of another format version.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"Cannot read the certificate {path}: {error.strerror or error}.") from error
        except ValueError as error:
            raise InputError(f"{path} is no certificate: it is not valid JSON ({error}).") from error
        try:
            return cls._from_json(document)
        except InputError as error:
            raise InputError(f"The certificate {path} is damaged or not of this version: {error}") from error

    @classmethod
    def _from_json(cls, document: Any) -> Self:
        # The version comes first: a file of another version would otherwise be called damaged field by field.
        if isinstance(document, dict):
            version = document.get("format_version")
            require(version == FORMAT_VERSION, "format_version", version, f"{FORMAT_VERSION}")
        certificate: Self = decode_record(cls, document, "the document")
        for name in ("within_budget", "speedup"):
            stated, derived = document.get(name), getattr(certificate, name)
            if stated != derived:
                raise InputError(
                    f"{name} is stated as {stated!r}, but the measurement in it says {derived!r}."
                )
        return certificate


def changed_files(sha256: Mapping[str, str], directory: Path) -> tuple[str, ...]:
    """Names of the files in `directory` that are missing or no longer have the SHA-256, in hex, kept of them."""
    return tuple(
        name
        for name, expected in sorted(sha256.items())
        if not (directory / name).is_file() or file_sha256(directory / name) != expected
    )


def recorded_versions() -> dict[str, str]:
    """Versions of Python and of those of `RECORDED_PACKAGES` that are installed, without importing them."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def utc_now() -> str:
    """The time, to the second, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_positive(name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, name, value, "a positive number")


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False
