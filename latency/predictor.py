"""Latency predictions from a fitted LPNet's files, with numpy and ONNX Runtime alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from latency.device import DeviceFingerprint
from latency.errors import DeviceMismatchError, LatencyError, ProfileError, WidthError
from latency.grid_tables import Floats, GridTables
from latency.lpnet_files import (
    GRADIENT_FILE,
    GRID_FILE,
    ONNX_FILE,
    LPNetManifest,
    file_hashes,
    read_file,
    read_manifest,
)
from latency.session import make_session

FloatArray = npt.NDArray[np.float64]

# Half the width of a 95 % interval of a normal distribution, in standard errors.
_Z95 = 1.96
# Spread from which a network counts as unlike those profiled, relative to their largest.
_OUT_OF_RANGE = 1.5
# Sum of squares up to which every width is an int64.
_WHOLE = 2.0**62


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

    def __init__(
        self,
        session: ort.InferenceSession,
        manifest: LPNetManifest,
        *,
        tables: GridTables | None = None,
        gradient: ort.InferenceSession | None = None,
    ) -> None:
        """A predictor of an LPNet's files, opened; the last two are None where the LPNet lacks them."""
        self.manifest = manifest
        self._session = session
        self._tables = tables
        self._gradient = gradient
        self._offsets, self._allowed = _allowed_widths(manifest)

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
        known = file_hashes(directory)
        return cls(
            _load_session(directory, ONNX_FILE),
            manifest,
            tables=_load_tables(directory, manifest) if GRID_FILE in known else None,
            gradient=_load_session(directory, GRADIENT_FILE) if GRADIENT_FILE in known else None,
        )

    def predict_ms(self, widths: npt.ArrayLike) -> FloatArray:
        """Predicted latencies in ms, [n].

        Args:
            widths: width vectors, [n, n_groups] or a single one [n_groups]; between grid points the
                prediction is interpolated.

        Raises:
            WidthError: wrong shape, not finite, out of range, or 0 where a group cannot vanish.
        """
        on_grid = self._on_grid(widths)
        if on_grid is not None and self._tables is not None:
            return self._tables.latency_ms(on_grid).astype(np.float64)
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
        on_grid = self._on_grid(widths)
        if on_grid is not None and self._tables is not None:
            found = self._tables.outputs(on_grid)
        else:
            vectors = self._checked(widths).astype(np.float32)
            found = self._session.run(["latency_ms", "spread", "layer_ms"], {"widths": vectors})
        latency_ms, spread, layer_ms = (np.asarray(value, dtype=np.float64) for value in found)
        factor = np.exp(_Z95 * np.sqrt(self.manifest.model_error**2 + spread**2))
        return Prediction(
            latency_ms=latency_ms,
            low_ms=latency_ms / factor,
            high_ms=latency_ms * factor,
            out_of_range=spread > _OUT_OF_RANGE * self.manifest.largest_spread,
            layer_ms=layer_ms,
        )

    def gradient(self, widths: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Predicted latencies in ms, [n], and their gradient in ms per channel, [n, n_groups].

        At a grid point the gradient is the slope downwards, what removing channels saves, as LPNet's own.

        Args:
            widths: width vectors, see `predict_ms`.

        Raises:
            WidthError: as `predict_ms`.
            ProfileError: the LPNet was written before gradients were kept with it.
        """
        if self._gradient is None:
            raise ProfileError(f"This LPNet has no {GRADIENT_FILE}; fit again to write it.")
        vectors = self._checked(widths).astype(np.float32)
        found = self._gradient.run(["latency_ms", "gradient"], {"widths": vectors})
        latency_ms, gradient = (np.asarray(value, dtype=np.float64) for value in found)
        return latency_ms, gradient

    @property
    def has_gradient(self) -> bool:
        """Whether `gradient` can answer."""
        return self._gradient is not None

    def _on_grid(self, widths: npt.ArrayLike) -> Floats | None:
        """The widths, [n, n_groups], if there are tables that have all of them; what is no width they do not have."""
        if self._tables is None:
            return None
        try:
            vectors = np.asarray(widths)
        except ValueError:  # rows of unlike length
            return None
        if vectors.ndim == 1:
            vectors = vectors[None]
        if vectors.ndim != 2 or vectors.shape[1] != self._offsets.shape[1] or vectors.dtype.kind not in "fiu":
            return None
        if vectors.dtype.kind == "f" and not np.vdot(vectors, vectors) < _WHOLE:  # nor is NaN
            return None
        # A width outside of its group's finds one of another group, which is smaller than it, or at least not negative.
        found = self._allowed.take(vectors.astype(np.int64) + self._offsets, mode="clip")
        return found if np.count_nonzero(found == vectors) == found.size else None

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


def _allowed_widths(manifest: LPNetManifest) -> tuple[npt.NDArray[np.int64], Floats]:
    """Where each group's widths begin in a table, [1, n_groups], and the table: each width on the grid, else NaN."""
    sizes = manifest.full_widths + 1
    offsets = np.cumsum(sizes) - sizes
    table = np.full(int(sizes.sum()), np.nan, dtype=np.float32)
    for offset, allowed, may_vanish in zip(offsets, manifest.grid.allowed, manifest.may_vanish, strict=True):
        table[offset + np.array(allowed)] = allowed
        if may_vanish:
            table[offset] = 0
    return offsets[None], table


def _load_session(directory: Path, name: str) -> ort.InferenceSession:
    content = read_file(directory, name)
    try:
        return make_session(content)
    except LatencyError as error:
        raise ProfileError(f"{Path(directory) / name} does not load ({error}); fit again.") from error


def _load_tables(directory: Path, manifest: LPNetManifest) -> GridTables | None:
    content, n_groups = read_file(directory, GRID_FILE), len(manifest.group_names)
    try:
        tables = GridTables.from_onnx(content)
        if tables is not None and tables.n_groups != n_groups:
            raise ProfileError(f"it has {tables.n_groups} groups, the network {n_groups}")
    except ProfileError as error:
        raise ProfileError(f"{Path(directory) / GRID_FILE} does not load ({error}); fit again.") from error
    return tables


def _require_device(manifest: LPNetManifest, device: DeviceFingerprint, directory: Path) -> None:
    if manifest.fingerprint.digest != device.digest:
        differences = "; ".join(manifest.fingerprint.differences(device))
        raise DeviceMismatchError(
            f"The LPNet in {directory} was measured on another device ({differences}, here); profile and fit "
            "on this device, or allow another device's figures."
        )
