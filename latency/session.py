"""ONNX Runtime sessions whose every option that moves the latency is explicit, and inputs to feed them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from latency.device import DeviceSettings, provider_options, require_available, session_config
from latency.errors import InputError, MeasurementError, ModelFileError
from latency.in_memory import InMemoryModel

Feed = dict[str, npt.NDArray[np.generic]]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def session_options(settings: DeviceSettings) -> ort.SessionOptions:
    """Session options for these settings: explicit threads, sequential, all optimisations, no denormals."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The fast blocked layout (NCHWc) appears only at this level.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    for key, value in session_config(settings).items():
        options.add_session_config_entry(key, value)
    return options


def make_session(
    model: bytes | Path | onnx.ModelProto | InMemoryModel, settings: DeviceSettings | None = None
) -> ort.InferenceSession:
    """A session of the model on the device.

    Args:
        model: an ONNX file, its bytes, or the model itself, with its weights in it or in memory.
        settings: provider, threads; the CPU with one thread if left out.

    Raises:
        ProviderUnavailableError: the installed ONNX Runtime lacks the provider.
        ModelFileError: the model is missing or ONNX Runtime cannot read it.
        MeasurementError: the provider refused the model or did not start.
    """
    settings = settings or DeviceSettings()
    require_available(settings)
    source = _session_source(model)
    name = str(model) if isinstance(model, Path) else "the model"
    # A list of one provider: ORT then adds only the CPU's, which session_config forbids to fall back on.
    providers = [(settings.provider, provider_options(settings))]
    options = session_options(settings)
    if isinstance(model, InMemoryModel):
        options.add_external_initializers(*model.ort_values())
    try:
        session = _Session(source, options, providers=providers)
    except Exception as error:  # ORT's exceptions share no base class below Exception
        if type(error).__name__ in ("InvalidProtobuf", "InvalidGraph", "NoSuchFile", "InvalidArgument"):
            raise ModelFileError(f"ONNX Runtime cannot read {name}: {_first_line(error)}") from error
        raise MeasurementError(f"{settings.provider} cannot run {name}: {_first_line(error)}") from error
    if settings.provider not in session.get_providers():
        raise MeasurementError(
            f"{settings.provider} did not start; ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}. Its libraries are missing or too old."
        )
    session.read_in_place = model if isinstance(model, InMemoryModel) else None
    return session


class _Session(ort.InferenceSession):  # type: ignore[misc]  # ONNX Runtime comes without types
    """Keeps the weights alive that it reads in place."""

    read_in_place: object = None


def random_feed(session: ort.InferenceSession, *, batch_size: int = 1, seed: int = 0) -> Feed:
    """Standard-normal inputs (zeros for integers) for every input of the session.

    Args:
        session: where the inputs' names, types and shapes come from.
        batch_size: size of the first axis, where the model leaves it open.
        seed: seed of the numbers.

    Raises:
        InputError: an axis other than the first is open, the batch size built into the model is another
            one, or the type is not a plain tensor of numbers.
    """
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for entry in session.get_inputs():
        dtype = _DTYPES.get(entry.type)
        if dtype is None:
            raise InputError(f"Input {entry.name!r} is a {entry.type}; allowed: {', '.join(_DTYPES)}.")
        shape = _concrete_shape(entry.name, entry.shape, batch_size)
        if np.issubdtype(dtype, np.floating):
            feed[entry.name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
        else:
            feed[entry.name] = np.zeros(shape, dtype)
    return feed


def bound_run(session: ort.InferenceSession, feed: Feed) -> Callable[[], None]:
    """A call that runs one inference on the feed, inputs and outputs bound once, in host memory.

    On an accelerator the copies to and from the device are thus part of the latency, as a caller sees it.
    """
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cpu")

    def run() -> None:
        session.run_with_iobinding(binding)

    return run


def _session_source(model: bytes | Path | onnx.ModelProto | InMemoryModel) -> bytes | str:
    if isinstance(model, InMemoryModel):
        return model.graph
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString()
    if isinstance(model, bytes):
        return model
    if not model.is_file():
        raise ModelFileError(f"There is no ONNX file {model}.")
    return str(model)


def _concrete_shape(name: str, shape: list[int | str | None], batch_size: int) -> tuple[int, ...]:
    open_axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int) and axis > 0]
    if open_axes:
        raise InputError(
            f"Input {name!r} has shape {shape}: axis {open_axes[0]} is open; only the batch axis may be. "
            "Export the model with a fixed input size."
        )
    if not shape:
        return ()
    if isinstance(shape[0], int) and shape[0] != batch_size:
        raise InputError(
            f"Input {name!r} has shape {shape}, a batch of {shape[0]}, but the settings ask for a batch of "
            f"{batch_size}; trace the model again with that batch size."
        )
    return (batch_size, *(int(size) for size in shape[1:] if size is not None))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
