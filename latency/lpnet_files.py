"""The files of a fitted LPNet and its manifest.

An LPNet is a folder: `lpnet.onnx` (widths → milliseconds), `lpnet-gradient.onnx` (widths → milliseconds and their
gradient), `lpnet-grid.onnx` (tables for the first on the grid alone, many times as fast, see `latency.grid_tables`),
`lpnet.safetensors` (the first for torch) and `lpnet.json`, the manifest: which network and device it is for, how
good it is, and the hashes of the others.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency.device import DeviceFingerprint
from latency.errors import ProfileError
from latency.grid import Grid
from latency.metrics import PredictionMetrics

FORMAT_NAME = "trimms lpnet"
# 1: first version. 2: `cv_rmse` and `largest_spread` in the manifest, `spread` and `layer_ms` in the ONNX file.
# 3: `model_error` in the manifest.
# 4: `lpnet-gradient.onnx`, and `lpnet-grid.onnx` where its tables are not too large.
# 5: `lpnet-grid.onnx` holds tables; before, a graph that computed with them.
FORMAT_VERSION = 5
READABLE_VERSIONS = (3, 4, 5)

WIDEST = 2**20
"""Channels of the widest group that anybody has."""

ONNX_FILE = "lpnet.onnx"
GRADIENT_FILE = "lpnet-gradient.onnx"
GRID_FILE = "lpnet-grid.onnx"
WEIGHTS_FILE = "lpnet.safetensors"
MANIFEST_FILE = "lpnet.json"


@dataclass(frozen=True, slots=True)
class LPNetManifest:
    """What an LPNet is for, what it was made from and how good it is.

    Attributes:
        kind: class of the model, such as "LPNet".
        structure_hash: the network it prices, see `latency.space.SearchSpace`.
        group_names: channel groups in the order of the width vector.
        grid: allowed widths per group, the full width last.
        may_vanish: per group, whether width 0 is a network.
        layer_names: layers of the network in the order of the encoding.
        fingerprint: device that it was measured on.
        reference_ms: latency of the unpruned network by the device's clock.
        profile_digest: the profile it was fitted to.
        n_train: networks it was fitted to.
        seed: seed of the fit.
        cv_rmse: cross-validated relative error, outliers weighted down, 0.01 is 1 %.
        model_error: the part of it that the measurements' noise does not explain, relative.
        largest_spread: largest relative standard error (`spread`) over the networks it was fitted to; None
            for a kind of model that knows none.
        metrics: agreement with the held-out networks by method, the model's own under `kind`; empty where
            nothing was held out.
        noise_floor_mape: error of one measurement of a held-out network against the mean of its repetitions,
            0.01 is 1 %; None where nothing was measured twice.
        versions: versions of the libraries that made it.
    """

    kind: str
    structure_hash: str
    group_names: tuple[str, ...]
    grid: Grid
    may_vanish: tuple[bool, ...]
    layer_names: tuple[str, ...]
    fingerprint: DeviceFingerprint
    reference_ms: float
    profile_digest: str
    n_train: int
    seed: int
    cv_rmse: float
    model_error: float
    largest_spread: float | None
    metrics: Mapping[str, PredictionMetrics]
    noise_floor_mape: float | None
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        sizes = {len(self.group_names), len(self.grid.allowed), len(self.may_vanish)}
        if len(sizes) != 1:
            raise ProfileError(f"names, grid and vanishing groups differ in length: {sorted(sizes)}")
        if not all(0 < allowed[-1] <= WIDEST for allowed in self.grid.allowed):
            raise ProfileError(f"full widths are from 1 to {WIDEST}")

    @property
    def full_widths(self) -> npt.NDArray[np.int64]:
        """Widths of the unpruned network, [n_groups]."""
        return np.array([allowed[-1] for allowed in self.grid.allowed], dtype=np.int64)

    @property
    def identity(self) -> str:
        """Hash of the manifest, 16 hexadecimal digits: which LPNet it is."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        return {
            "kind": self.kind,
            "structure_hash": self.structure_hash,
            "group_names": list(self.group_names),
            "grid": self.grid.to_json(),
            "may_vanish": list(self.may_vanish),
            "layer_names": list(self.layer_names),
            "fingerprint": self.fingerprint.to_json(),
            "fingerprint_digest": self.fingerprint.digest,
            "reference_ms": self.reference_ms,
            "profile_digest": self.profile_digest,
            "n_train": self.n_train,
            "seed": self.seed,
            "cv_rmse": self.cv_rmse,
            "model_error": self.model_error,
            "largest_spread": self.largest_spread,
            "metrics": {name: metrics.to_json() for name, metrics in self.metrics.items()},
            "noise_floor_mape": self.noise_floor_mape,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "LPNetManifest":
        """The manifest that `to_json` gave."""
        fields = {name: value for name, value in record.items() if name != "fingerprint_digest"}
        for name in ("group_names", "may_vanish", "layer_names"):
            fields[name] = tuple(record[name])
        fields["grid"] = Grid.from_json(record["grid"])
        fields["fingerprint"] = DeviceFingerprint.from_json(record["fingerprint"])
        fields["metrics"] = {name: PredictionMetrics.from_json(m) for name, m in record["metrics"].items()}
        return cls(**fields)


def read_manifest(directory: Path, *, needs: str) -> LPNetManifest:
    """The manifest of the LPNet in a folder.

    Args:
        directory: folder with `lpnet.json`.
        needs: the other file that will be read, `ONNX_FILE` or `WEIGHTS_FILE`, checked against its hash.

    Raises:
        ProfileError: a file is missing, damaged or of a later version.
    """
    record = _read_record(directory)
    path = Path(directory) / MANIFEST_FILE
    try:
        manifest = LPNetManifest.from_json(record["manifest"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is damaged ({type(error).__name__}: {error}); fit again.") from error
    read_file(directory, needs)
    return manifest


def file_hashes(directory: Path) -> Mapping[str, str]:
    """SHA-256 of each file of the LPNet in a folder, the manifest's own left out.

    Raises:
        ProfileError: there is no LPNet, its manifest is damaged or of a later version.
    """
    hashes: Mapping[str, str] = _read_record(directory)["sha256"]
    return hashes


def read_file(directory: Path, name: str) -> bytes:
    """Content of a file of the LPNet in a folder.

    Raises:
        ProfileError: it is missing, or is not the file that the manifest names.
    """
    path, expected = Path(directory) / name, file_hashes(directory).get(name)
    if expected is None or not path.is_file():
        raise ProfileError(f"The LPNet's file {path} is missing; fit again.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise ProfileError(f"{path} is damaged: it is not the file that {MANIFEST_FILE} names; fit again.")
    return content


def _read_record(directory: Path) -> dict[str, Any]:
    path = Path(directory) / MANIFEST_FILE
    if not path.is_file():
        raise ProfileError(
            f"There is no LPNet in {directory} (no {MANIFEST_FILE}); make it with `trimms fit`."
        )
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        _require_format(record, path)
        if not isinstance(record["sha256"], dict):
            raise TypeError("sha256 is no JSON object")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is damaged ({type(error).__name__}: {error}); fit again.") from error
    return record


def write_manifest(manifest: LPNetManifest, directory: Path) -> None:
    """Write `lpnet.json` for the other files of the LPNet, which are there already."""
    files = (ONNX_FILE, WEIGHTS_FILE, GRADIENT_FILE, GRID_FILE)
    present = [directory / name for name in files if (directory / name).is_file()]
    record = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "manifest": manifest.to_json(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in present},
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    temporary = directory / f"{MANIFEST_FILE}.tmp"
    temporary.write_text(text + "\n")
    temporary.replace(directory / MANIFEST_FILE)


def _require_format(record: Mapping[str, Any], path: Path) -> None:
    if record["format"] != FORMAT_NAME:
        raise ProfileError(f"{path} is no LPNet: its format is {record['format']!r}, not {FORMAT_NAME!r}.")
    if record["version"] not in READABLE_VERSIONS:
        known = ", ".join(map(str, READABLE_VERSIONS))
        raise ProfileError(
            f"{path} has format version {record['version']}, known here are {known}; fit again, or update trimms "
            "if it is a later one."
        )
