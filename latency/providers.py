"""The execution providers of ONNX Runtime, and the number formats that networks can be measured in on each."""

from dataclasses import dataclass

from latency.errors import ProviderUnavailableError


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider of ONNX Runtime.

    Attributes:
        short: name on the command line.
        name: ONNX Runtime's name.
        hardware: what it runs on; providers on the same hardware are not measured at the same time.
        install: what brings the provider.
        precisions: number formats, see `PRECISIONS`, that it has kernels for and that networks are converted to.
    """

    short: str
    name: str
    hardware: str
    install: str
    precisions: tuple[str, ...] = ("fp32",)


PRECISIONS = ("fp32", "fp16", "int8")
"""Number formats of weights and activations; int8 is ONNX's QDQ format."""

# A format is left out where a provider computes in another one behind casts (fp16 on CPUs), or wants networks converted
# in its own way (int8 on TensorRT and NPUs).
PROVIDERS = (
    Provider("cpu", "CPUExecutionProvider", "cpu", "pip install onnxruntime", ("fp32", "int8")),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "cpu",
        "pip install onnxruntime-openvino",
        ("fp32", "int8"),
    ),
    Provider("xnnpack", "XnnpackExecutionProvider", "cpu", "build ONNX Runtime with --use_xnnpack"),
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        "gpu",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ("fp32", "fp16"),
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        "gpu",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' and the TensorRT libraries",
        ("fp32", "fp16"),
    ),
    Provider("coreml", "CoreMLExecutionProvider", "apple", "pip install onnxruntime on macOS"),
    Provider("qnn", "QNNExecutionProvider", "npu", "pip install onnxruntime-qnn"),
)


def provider_named(text: str) -> Provider:
    """The provider called `text`, by short or full name in any case.

    Raises:
        ProviderUnavailableError: no provider is called so.
    """
    for provider in PROVIDERS:
        if text.lower() in (provider.short, provider.name.lower()):
            return provider
    known = ", ".join(provider.short for provider in PROVIDERS)
    raise ProviderUnavailableError(f"No execution provider is called {text!r}; known are: {known}.")
