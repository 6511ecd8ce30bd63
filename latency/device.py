"""What a latency belongs to: the execution provider and its settings, and a fingerprint of the machine.

Two measurements may be compared only where their fingerprints' digests agree. The digest covers what
changes latency and stays put (processor, instruction sets, CPU quota, ONNX Runtime, session options); kernel
and Python versions, host load and the like are recorded beside it but not hashed.
"""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latency.errors import InputError, ProviderUnavailableError
from latency.gpu import gpu_kinds
from latency.providers import PRECISIONS, PROVIDERS, provider_named

# The instruction sets that pick ORT's kernels, and with them the staircase in channels.
ISA_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How a network is to be run on the device.

    Attributes:
        provider: full name of the execution provider, see `PROVIDERS`.
        threads: intra-operator threads; explicit, since ORT's default ignores affinity and cgroups.
        batch_size: images per inference.
        precision: number format of the network, one of the provider's.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch_size: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.provider not in {provider.name for provider in PROVIDERS}:
            provider_named(self.provider)
            raise InputError(
                f"DeviceSettings needs a provider's full name, got {self.provider!r}; "
                "use DeviceSettings.parse."
            )
        for name, value in (("threads", self.threads), ("batch size", self.batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"The {name} must be a whole number of at least 1, got {value!r}.")
        self._require_format()

    def _require_format(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"Number format {self.precision!r} is not supported; allowed: {', '.join(PRECISIONS)}."
            )
        provider = provider_named(self.provider)
        if self.precision not in provider.precisions:
            able = [other.short for other in PROVIDERS if self.precision in other.precisions]
            raise InputError(
                f"The provider {provider.short} cannot run {self.precision}: it has no kernels of its own for it, or "
                f"takes it in a form of its own; it runs {', '.join(provider.precisions)}. Providers for "
                f"{self.precision}: {', '.join(able)}."
            )

    @classmethod
    def parse(
        cls, provider: str = "cpu", *, threads: int = 1, batch_size: int = 1, precision: str = "fp32"
    ) -> "DeviceSettings":
        """Settings with the provider given by its short or full name, such as "cpu" or "openvino".

        Raises:
            ProviderUnavailableError: no provider is called so.
            InputError: another value is out of its range.
        """
        name = provider_named(provider).name
        return cls(provider=name, threads=threads, batch_size=batch_size, precision=precision)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DeviceSettings":
        """The settings that `to_json` gave."""
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        return dataclasses.asdict(self)

    @property
    def on_cpu(self) -> bool:
        """Whether ORT's own CPU provider runs the network."""
        return self.provider == "CPUExecutionProvider"

    @property
    def hardware(self) -> str:
        """The part of the machine that is busy during a measurement."""
        return provider_named(self.provider).hardware


def session_config(settings: DeviceSettings) -> dict[str, str]:
    """ORT session configuration entries used for every session, in profiling and in deployment."""
    # Trained and pruned weights hold denormals, which slow a CPU up to tenfold (onnxruntime #12959, #7448).
    config = {"session.set_denormal_as_zero": "1"}
    if not settings.on_cpu:
        # Otherwise nodes that the provider cannot run are silently timed on the CPU.
        config["session.disable_cpu_ep_fallback"] = "1"
    return config


def provider_options(settings: DeviceSettings) -> dict[str, str]:
    """Options of the execution provider itself."""
    threads = str(settings.threads)
    options: dict[str, dict[str, str]] = {
        "OpenVINOExecutionProvider": {"device_type": "CPU", "num_of_threads": threads, "num_streams": "1"},
        "XnnpackExecutionProvider": {"intra_op_num_threads": threads},
        # EXHAUSTIVE, the default, takes seconds for every new shape (onnxruntime #9667).
        "CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC"},
    }
    return options.get(settings.provider, {})


def require_available(settings: DeviceSettings) -> None:
    """Make sure that this machine can run a session with these settings.

    Raises:
        ProviderUnavailableError: the installed ONNX Runtime lacks the provider.
        InputError: more threads are asked for than this process may use cores.
    """
    available = ort.get_available_providers()
    provider = provider_named(settings.provider)
    if provider.name not in available:
        raise ProviderUnavailableError(
            f"ONNX Runtime {ort.__version__} here has no {provider.name}; it has: {', '.join(available)}. "
            f"To get it: {provider.install} (only one onnxruntime package can be installed at a time)."
        )
    if settings.threads > usable_cores():
        raise InputError(
            f"{settings.threads} threads were asked for, but this process may use {usable_cores()} core(s); "
            f"choose at most {usable_cores()}."
        )


def usable_cores() -> int:
    """Number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class DeviceFingerprint:
    """The machine, the runtime and the settings that a measurement belongs to.

    Attributes:
        architecture: such as "x86_64" or "aarch64".
        cpu_vendor: as the processor names it.
        cpu_model: name of the processor, or of the board where it has none.
        cpu_family: family / model / stepping, or implementer / part / revision on ARM.
        isa: those of `ISA_FLAGS` that the processor has.
        cpu_limit: CPUs that the cgroup's quota allows, None without a quota.
        cores: cores in the affinity mask. Not hashed: one thread runs the same under `taskset`.
        ort_version: ONNX Runtime's version.
        session_config: session options used.
        provider_options: the provider's options used.
        settings: provider, threads, batch size, precision.
        os: operating system.
        kernel: kernel release, not hashed.
        libc: C library and version.
        python: Python's version, not hashed.
        gpus: kinds of GPU, see `latency.gpu`, where the provider runs on one.
    """

    architecture: str
    cpu_vendor: str
    cpu_model: str
    cpu_family: str
    isa: tuple[str, ...]
    cpu_limit: float | None
    cores: int
    ort_version: str
    session_config: tuple[tuple[str, str], ...]
    provider_options: tuple[tuple[str, str], ...]
    settings: DeviceSettings
    os: str
    kernel: str
    libc: str
    python: str
    gpus: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of the fields that make latencies comparable, 16 hexadecimal digits."""
        # Digests of devices without GPUs are from before there was that field.
        fields = {name: value for name, value in self._stable_fields().items() if name != "gpus" or value}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: "DeviceFingerprint") -> tuple[str, ...]:
        """Each hashed field in which `other` differs, as "field: mine here, theirs there"."""
        mine, theirs = self._stable_fields(), other._stable_fields()
        return tuple(
            f"{name}: {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]
        )

    def describe(self) -> str:
        """One line for people."""
        widest = [flag for flag in ("avx512f", "avx2", "sve2", "sve", "asimd") if flag in self.isa][:1]
        threads = f"{self.settings.threads} thread{'s' if self.settings.threads > 1 else ''}"
        parts = [
            f"{self.cpu_model} ({self.cpu_family})",
            *widest,
            *self.gpus,
            threads,
            f"batch {self.settings.batch_size}",
            *([] if self.settings.precision == "fp32" else [self.settings.precision]),
        ]
        return ", ".join([*parts, self.settings.provider, f"ONNX Runtime {self.ort_version}"])

    @property
    def saturates_int8(self) -> bool:
        """Whether sums of two products of 8-bit numbers saturate: on x86 without VNNI, where weights get 7 bits."""
        exact = {"avx_vnni", "avx512_vnni", "amx_int8"}
        return self.architecture in ("x86_64", "AMD64") and not exact.intersection(self.isa)

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as a JSON object."""
        record = dataclasses.asdict(self) | {
            "isa": list(self.isa),
            "session_config": dict(self.session_config),
            "provider_options": dict(self.provider_options),
            "digest": self.digest,
        }
        if not record.pop("gpus"):
            return record
        return record | {"gpus": list(self.gpus)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DeviceFingerprint":
        """The fingerprint that `to_json` gave."""
        fields = {name: value for name, value in record.items() if name != "digest"}
        fields["isa"] = tuple(record["isa"])
        fields["gpus"] = tuple(record.get("gpus", ()))
        fields["session_config"] = _sorted_pairs(record["session_config"])
        fields["provider_options"] = _sorted_pairs(record["provider_options"])
        fields["settings"] = DeviceSettings.from_json(record["settings"])
        return cls(**fields)

    def _stable_fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        fields |= fields.pop("settings")
        return {name: value for name, value in fields.items() if name not in ("cores", "kernel", "python")}


def fingerprint(settings: DeviceSettings) -> DeviceFingerprint:
    """The fingerprint of this machine under the given settings.

    Raises:
        ProviderUnavailableError: the installed ONNX Runtime lacks the provider.
        InputError: more threads are asked for than there are cores.
    """
    require_available(settings)
    cpu = _cpu_record()
    return DeviceFingerprint(
        architecture=platform.machine(),
        cpu_vendor=cpu["vendor"],
        cpu_model=cpu["model"],
        cpu_family=cpu["family"],
        isa=tuple(flag for flag in ISA_FLAGS if flag in cpu["flags"].split()),
        cpu_limit=cgroup_cpu_limit(),
        cores=usable_cores(),
        ort_version=ort.__version__,
        session_config=_sorted_pairs(session_config(settings)),
        provider_options=_sorted_pairs(provider_options(settings)),
        settings=settings,
        os=platform.system(),
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()).strip(),
        python=platform.python_version(),
        gpus=gpu_kinds() if settings.hardware == "gpu" else (),
    )


def cgroup_cpu_limit(
    cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """CPUs' worth of time that this process's control groups (v1 or v2) allow, None without a limit."""
    if not cgroups.exists():
        return None
    limits: list[float] = []
    for line in cgroups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        # A parent's quota binds its children; containers see their own group at the mount's root.
        for folder in [mount / path.strip("/"), *(mount / path.strip("/")).parents]:
            if folder == root.parent:
                break
            limits.extend(_quota(folder))
    return min(limits, default=None)


def _quota(folder: Path) -> list[float]:
    v2, v1 = folder / "cpu.max", folder / "cpu.cfs_quota_us"
    if v2.exists():
        quota, period = v2.read_text().split()
    elif v1.exists():
        quota, period = v1.read_text().strip(), (folder / "cpu.cfs_period_us").read_text()
    else:
        return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def _cpu_record() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    info = parse_cpuinfo(path.read_text()) if path.exists() else {}
    model = info.get("model name", "") or _board_name() or platform.processor() or "unknown processor"
    if "CPU implementer" in info:
        family = " / ".join(info.get(f"CPU {key}", "?") for key in ("implementer", "part", "revision"))
    else:
        family = " / ".join(info.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return {
        "vendor": info.get("vendor_id", info.get("CPU implementer", "unknown")),
        "model": model,
        "family": family,
        "flags": info.get("flags", info.get("Features", "")),
    }


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _board_name() -> str:
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text().strip("\x00\n ")
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _sorted_pairs(entries: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(entries.items()))
