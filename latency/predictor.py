"""Latency predictions from a fitted LPNet's files, with numpy and ONNX Runtime alone.

An LPNet is a folder: `lpnet.onnx` (widths → milliseconds), `lpnet.safetensors` (the same for torch, where it
is differentiable) and `lpnet.json`, the manifest: which network and device it is for, how good it is, and the
hashes of the other two.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from latency.device import DeviceFingerprint
from latency.errors import DeviceMismatchError, LatencyError, ProfileError, WidthError
from latency.grid import Grid
from latency.metrics import PredictionMetrics
from latency.session import make_session

FloatArray = npt.NDArray[np.float64]

FORMAT_NAME = "trimms lpnet"
# 1: first version. 2: `cv_rmse` and `largest_spread` in the manifest, `spread` and `layer_ms` in the ONNX file.
# 3: `model_error` in the manifest.
FORMAT_VERSION = 3

# Half the width of a 95 % interval of a normal distribution, in standard errors.
_Z95 = 1.96
# Spread from which a network counts as unlike those profiled, relative to their largest.
_OUT_OF_RANGE = 1.5

ONNX_FILE = "lpnet.onnx"
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

    @property
    def full_widths(self) -> npt.NDArray[np.int64]:
        """Widths of the unpruned network, [n_groups]."""
        return np.array([allowed[-1] for allowed in self.grid.allowed], dtype=np.int64)

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


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latencies with what is known about them.

    Attributes:
        latency_ms: [n].
        low_ms: lower end of the 95 % interval, [n].
        high_ms: upper end, [n].
        out_of_range: whether fewer measured networks speak for it than for any of those profiled, [n].
        layer_ms: each layer's share in the order of the manifest's names, what belongs to no layer last,
            [n, n_layers + 1].
    """

    latency_ms: FloatArray
    low_ms: FloatArray
    high_ms: FloatArray
    out_of_range: npt.NDArray[np.bool_]
    layer_ms: FloatArray


class Predictor:
    """Latency of networks of one search space on one device.

    Attributes:
        manifest: what it is for and how good it is.
    """

    def __init__(self, session: ort.InferenceSession, manifest: LPNetManifest) -> None:
        self.manifest = manifest
        self._session = session

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        structure_hash: str | None = None,
        device: DeviceFingerprint | None = None,
        allow_other_device: bool = False,
    ) -> "Predictor":
        """The predictor in the folder of an LPNet.

        Args:
            directory: folder with `lpnet.json` and `lpnet.onnx`.
            structure_hash: network that will be asked for; any if left out.
            device: device that will be asked for; any if left out.
            allow_other_device: accept an LPNet that was measured on another device.

        Raises:
            ProfileError: a file is missing, damaged or of a later version, or belongs to another network.
            DeviceMismatchError: it was measured on another device.
        """
        manifest = read_manifest(directory, needs=ONNX_FILE)
        if structure_hash is not None and structure_hash != manifest.structure_hash:
            raise ProfileError(
                f"The LPNet in {directory} belongs to another network: structure hash "
                f"{manifest.structure_hash[:12]} there, {structure_hash[:12]} here; fit one for this network."
            )
        if device is not None and not allow_other_device:
            _require_device(manifest, device, directory)
        try:
            session = make_session((Path(directory) / ONNX_FILE).read_bytes())
        except LatencyError as error:
            raise ProfileError(
                f"{Path(directory) / ONNX_FILE} does not load ({error}); fit again."
            ) from error
        return cls(session, manifest)

    def predict_ms(self, widths: npt.ArrayLike) -> FloatArray:
        """Predicted latencies in ms, [n].

        Args:
            widths: width vectors, [n, n_groups] or a single one [n_groups]; between grid points the
                prediction is interpolated.

        Raises:
            WidthError: wrong shape, not finite, out of range, or 0 where a group cannot vanish.
        """
        vectors = self._checked(widths)
        if len(vectors) == 0:
            return np.zeros(0)
        (latency_ms,) = self._session.run(["latency_ms"], {"widths": vectors.astype(np.float32)})
        return np.asarray(latency_ms, dtype=np.float64)

    def predict(self, widths: npt.ArrayLike) -> Prediction:
        """Predictions with their 95 % intervals and the layers' shares; see `predict_ms`.

        The interval is 1.96 times the model's own error and the members' spread, as independent errors: the first
        is that of networks like those it was fitted to, the second grows away from them. It is for the mean of many
        measurements; a single one differs from that by its own noise.

        Raises:
            WidthError: as `predict_ms`.
            ProfileError: this kind of model knows the latency alone.
        """
        if self.manifest.largest_spread is None:
            raise ProfileError(f"A {self.manifest.kind} predicts the latency alone; fit an LPNet.")
        vectors = self._checked(widths).astype(np.float32)
        names = ["latency_ms", "spread", "layer_ms"]
        latency_ms, spread, layer_ms = (
            np.asarray(value, dtype=np.float64) for value in self._session.run(names, {"widths": vectors})
        )
        half = _Z95 * np.sqrt(self.manifest.model_error**2 + spread**2)
        return Prediction(
            latency_ms=latency_ms,
            low_ms=latency_ms * np.exp(-half),
            high_ms=latency_ms * np.exp(half),
            out_of_range=spread > _OUT_OF_RANGE * self.manifest.largest_spread,
            layer_ms=layer_ms,
        )

    def _checked(self, widths: npt.ArrayLike) -> FloatArray:
        manifest = self.manifest
        n_groups = len(manifest.group_names)
        try:
            vectors = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise WidthError(f"Widths are numbers, {n_groups} for each network: {error}") from error
        if vectors.ndim != 2 or vectors.shape[1] != n_groups:
            raise WidthError(
                f"Expected {n_groups} widths for each network, one for each group; got shape {vectors.shape}."
            )
        if not np.isfinite(vectors).all():
            row, group = np.argwhere(~np.isfinite(vectors))[0]
            raise WidthError(
                f"The width of group '{manifest.group_names[group]}' in row {row} is {vectors[row, group]}; "
                "it must be a number of channels."
            )
        gone = (vectors == 0) & ~np.array(manifest.may_vanish)
        wrong = np.argwhere(gone | (vectors < 0) | (vectors > manifest.full_widths))
        if wrong.size:
            row, group = wrong[0]
            least = 0 if manifest.may_vanish[group] else manifest.grid.allowed[group][0]
            raise WidthError(
                f"Group '{manifest.group_names[group]}' has {manifest.full_widths[group]} channels; width "
                f"{vectors[row, group]:g} in row {row} is not in {least} … {manifest.full_widths[group]}."
            )
        return vectors


def read_manifest(directory: Path, *, needs: str) -> LPNetManifest:
    """The manifest of the LPNet in a folder.

    Args:
        directory: folder with `lpnet.json`.
        needs: the other file that will be read, `ONNX_FILE` or `WEIGHTS_FILE`, checked against its hash.

    Raises:
        ProfileError: a file is missing, damaged or of a later version.
    """
    path = Path(directory) / MANIFEST_FILE
    if not path.is_file():
        raise ProfileError(
            f"There is no LPNet in {directory} (no {MANIFEST_FILE}); make it with `trimms fit`."
        )
    try:
        record = json.loads(path.read_bytes())
        _require_format(record, path)
        manifest = LPNetManifest.from_json(record["manifest"])
        expected_hash = record["sha256"][needs]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is damaged ({type(error).__name__}: {error}); fit again.") from error
    _require_hash(path.parent / needs, expected_hash)
    return manifest


def write_manifest(manifest: LPNetManifest, directory: Path) -> None:
    """Write `lpnet.json` for the other files of the LPNet, which are there already."""
    record = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "manifest": manifest.to_json(),
        "sha256": {name: _sha256(directory / name) for name in (ONNX_FILE, WEIGHTS_FILE)},
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    temporary = directory / f"{MANIFEST_FILE}.tmp"
    temporary.write_text(text + "\n")
    temporary.replace(directory / MANIFEST_FILE)


def _require_format(record: Mapping[str, Any], path: Path) -> None:
    if record["format"] != FORMAT_NAME:
        raise ProfileError(f"{path} is no LPNet: its format is {record['format']!r}, not {FORMAT_NAME!r}.")
    if record["version"] != FORMAT_VERSION:
        raise ProfileError(
            f"{path} has format version {record['version']}, known here is {FORMAT_VERSION}; fit again, or update "
            "trimms if it is a later one."
        )


def _require_device(manifest: LPNetManifest, device: DeviceFingerprint, directory: Path) -> None:
    if manifest.fingerprint.digest != device.digest:
        differences = "; ".join(manifest.fingerprint.differences(device))
        raise DeviceMismatchError(
            f"The LPNet in {directory} was measured on another device ({differences}, here); profile and fit "
            "on this device, or allow another device's figures."
        )


def _require_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ProfileError(f"The LPNet's file {path} is missing; fit again.")
    if _sha256(path) != expected:
        raise ProfileError(f"{path} is damaged: it is not the file that {MANIFEST_FILE} names; fit again.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
