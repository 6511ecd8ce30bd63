import dataclasses
import json
from pathlib import Path

import onnxruntime as ort
import pytest

from latency.device import (
    DeviceFingerprint,
    DeviceSettings,
    cgroup_cpu_limit,
    fingerprint,
    parse_cpuinfo,
    provider_options,
    require_available,
    session_config,
    usable_cores,
)
from latency.errors import InputError, ProviderUnavailableError

# The first line of a profile that was measured before there was any number format but fp32.
OLD_PROFILE = Path(__file__).parents[2] / "data/profiles/2fb28af174715d23/mobilenet_v2/profile.jsonl"


def test_settings_take_full_names_only():
    with pytest.raises(InputError, match=r"full name, got 'cpu'; use DeviceSettings\.parse"):
        DeviceSettings(provider="cpu")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_that_are_no_positive_number_are_refused(threads):
    with pytest.raises(InputError, match=f"threads must be a whole number of at least 1, got {threads}"):
        DeviceSettings(threads=threads)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"Number format 'int3' is not supported; allowed: fp32, fp16, int8"):
        DeviceSettings.parse(precision="int3")


def test_settings_survive_json():
    settings = DeviceSettings.parse("openvino", threads=2, batch_size=4, precision="int8")
    assert DeviceSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_a_provider_that_is_not_installed_is_refused_with_what_is_and_how_to_get_it():
    with pytest.raises(ProviderUnavailableError) as caught:
        require_available(DeviceSettings.parse("qnn"))
    message = str(caught.value)
    assert "no QNNExecutionProvider" in message
    assert ", ".join(ort.get_available_providers()) in message
    assert "pip install onnxruntime-qnn" in message


def test_more_threads_than_cores_are_refused():
    with pytest.raises(InputError, match=f"choose at most {usable_cores()}"):
        require_available(DeviceSettings(threads=usable_cores() + 1))


def test_denormals_are_flushed_everywhere_and_silent_cpu_fallback_is_off_elsewhere():
    assert session_config(DeviceSettings()) == {"session.set_denormal_as_zero": "1"}
    assert session_config(DeviceSettings.parse("cuda"))["session.disable_cpu_ep_fallback"] == "1"


def test_providers_with_their_own_threads_are_told_how_many():
    assert provider_options(DeviceSettings.parse("openvino", threads=2))["num_of_threads"] == "2"
    assert provider_options(DeviceSettings.parse("xnnpack", threads=2)) == {"intra_op_num_threads": "2"}


def test_the_fingerprint_of_one_machine_is_the_same_twice_and_survives_json():
    first = fingerprint(DeviceSettings())
    restored = DeviceFingerprint.from_json(json.loads(json.dumps(first.to_json())))
    assert restored == first
    assert fingerprint(DeviceSettings()).digest == restored.digest
    assert first.to_json()["digest"] == first.digest


def test_the_digest_ignores_kernel_python_and_affinity_but_not_what_changes_latency():
    device = fingerprint(DeviceSettings())
    same = dataclasses.replace(device, kernel="9.9", python="4.0", cores=99)
    assert same.digest == device.digest
    for change in (
        {"isa": ("avx2",)},
        {"ort_version": "0.1"},
        {"cpu_limit": 0.5},
        {"settings": dataclasses.replace(device.settings, batch_size=8)},
    ):
        assert dataclasses.replace(device, **change).digest != device.digest


def test_digests_and_records_of_devices_without_gpus_stay_what_they_were_before_gpus_were_known():
    device = DeviceFingerprint(
        *("x86_64", "Abacus", "Abacus 1", "1 / 2 / 3", ("avx2",), None, 2, "1.31.1"),
        *(
            (("session.set_denormal_as_zero", "1"),),
            (),
            DeviceSettings(),
            "Linux",
            "6.1",
            "glibc 2.36",
            "3.11.7",
        ),
    )
    assert device.digest == "0e5adebf22f552b8"
    assert "gpus" not in device.to_json()
    with_gpu = dataclasses.replace(device, gpus=("A10",))
    assert with_gpu.digest != device.digest != dataclasses.replace(device, gpus=("L4",)).digest
    assert DeviceFingerprint.from_json(json.loads(json.dumps(with_gpu.to_json()))) == with_gpu
    assert device.differences(with_gpu) == ("gpus: () and ('A10',)",)
    assert ", A10, 1 thread" in with_gpu.describe()


def test_gpus_are_looked_for_where_the_provider_runs_on_one(monkeypatch):
    monkeypatch.setattr("latency.device.require_available", lambda settings: None)
    monkeypatch.setattr("latency.device.gpu_kinds", lambda: ("A10",))
    found = {short: fingerprint(DeviceSettings.parse(short)).gpus for short in ("cpu", "cuda", "tensorrt")}
    assert found == {"cpu": (), "cuda": ("A10",), "tensorrt": ("A10",)}


def test_differences_name_the_field_and_both_values():
    device = fingerprint(DeviceSettings())
    other = dataclasses.replace(device, ort_version="0.1", settings=DeviceSettings(batch_size=8))
    assert device.differences(other) == (f"ort_version: {ort.__version__} and 0.1", "batch_size: 1 and 8")
    assert device.differences(device) == ()


def test_the_description_names_processor_provider_and_version():
    device = dataclasses.replace(fingerprint(DeviceSettings()), cpu_model="Abacus 1", isa=("avx2", "avx512f"))
    description = device.describe()
    assert description.startswith("Abacus 1")
    assert "avx512f, 1 thread, batch 1, CPUExecutionProvider" in description


def test_only_the_first_processor_of_cpuinfo_is_read():
    text = "processor\t: 0\nmodel name\t: A: 1\nflags\t: avx2 fma\n\nprocessor\t: 1\nmodel name\t: B\n"
    assert parse_cpuinfo(text) == {"processor": "0", "model name": "A: 1", "flags": "avx2 fma"}


def _cgroup(tmp_path: Path, line: str, files: dict[str, str]) -> float | None:
    (tmp_path / "cgroups").write_text(line)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    return cgroup_cpu_limit(tmp_path / "cgroups", tmp_path / "fs")


def test_the_cpu_limit_of_version_2_groups_is_the_tightest_on_the_way_up(tmp_path):
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "400000 100000\n"}
    assert _cgroup(tmp_path, "0::/a/b\n", files) == 1.5


def test_the_cpu_limit_of_version_1_groups_is_found(tmp_path):
    files = {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
    assert _cgroup(tmp_path, "3:memory:/m\n1:cpu:/a\n0::/\n", files) == 0.5


def test_without_a_quota_there_is_no_cpu_limit(tmp_path):
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert _cgroup(tmp_path, "1:cpu:/a\n", files) is None
    assert cgroup_cpu_limit(tmp_path / "missing", tmp_path) is None


def test_the_digest_of_an_fp32_device_is_what_it_always_was():
    with OLD_PROFILE.open() as lines:
        record = json.loads(next(lines))["fingerprint"]
    assert DeviceFingerprint.from_json(record).digest == record["digest"] == "2fb28af174715d23"


def test_another_number_format_is_another_device():
    fp32, int8 = fingerprint(DeviceSettings()), fingerprint(DeviceSettings(precision="int8"))
    assert fp32.digest != int8.digest
    assert fp32.differences(int8) == ("precision: fp32 and int8",)
    assert int8.describe() == fp32.describe().replace("batch 1", "batch 1, int8")


@pytest.mark.parametrize(
    ("architecture", "isa", "saturates"),
    [
        ("x86_64", ("avx2", "fma"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx512f", "avx512_vnni"), False),
        ("aarch64", ("asimd",), False),
    ],
)
def test_x86_without_vnni_saturates_8_bit_sums(architecture, isa, saturates):
    device = dataclasses.replace(fingerprint(DeviceSettings()), architecture=architecture, isa=isa)
    assert device.saturates_int8 is saturates
