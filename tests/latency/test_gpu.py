"""What `nvidia-smi` says, played by a script of that name."""

from pathlib import Path

import pytest

from latency.gpu import gpu_kinds

H200 = "GPU-8c1f, NVIDIA H200, 570.86.15, 9.0"
T4 = "GPU-77aa, Tesla T4, 570.86.15, 7.5"
QUERY = "--query-gpu=uuid,name,driver_version,compute_cap --format=csv,noheader"


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    prints = "".join(f"echo '{line}'\n" for line in lines)
    script.write_text(f'#!/bin/sh\n[ "$*" = "{QUERY}" ] || exit 2\n{prints}exit {code}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_each_kind_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(tmp_path, monkeypatch, T4, H200, H200.replace("8c1f", "9d20"))
    assert gpu_kinds() == (
        "NVIDIA H200, driver 570.86.15, compute capability 9.0",
        "Tesla T4, driver 570.86.15, compute capability 7.5",
    )


@pytest.mark.parametrize("used", ["GPU-77aa", "GPU-77", "GPU-77aa,GPU-8c1f"])
def test_the_one_that_is_used_is_known_by_its_uuid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str
) -> None:
    _nvidia_smi(tmp_path, monkeypatch, H200, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", used)
    assert gpu_kinds() == ("Tesla T4, driver 570.86.15, compute capability 7.5",)


def test_a_number_names_none_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _nvidia_smi(tmp_path, monkeypatch, H200, T4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(gpu_kinds()) == 2


def test_machines_without_gpus_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_kinds() == ()
    _nvidia_smi(tmp_path, monkeypatch, "No devices were found", code=6)
    assert gpu_kinds() == ()
