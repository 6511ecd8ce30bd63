"""Number formats on the command line: an 8-bit network end to end, and what is not mixed."""

import json
import shutil
from pathlib import Path

import onnx
import pytest

from latency.device import DeviceSettings, fingerprint
from latency.probing import DeviceProbe
from latency.profiles import read_profile
from pruning.certificate import Certificate
from pruning.errors import InputError
from pruning.run import RunDirectory
from pruning.verify import measure_pruned
from tests.command_line import SMALL_RUN, invoke

pytestmark = pytest.mark.usefixtures("two_quick_sessions")


@pytest.fixture(scope="module")
def int8_run(
    finished_run: tuple[Path, dict[str, object]], net_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    """The same network, traced and trained already, pruned for 8 bits on the grid of the fp32 run."""
    out = tmp_path_factory.mktemp("int8") / "out"
    ignored = shutil.ignore_patterns("profile*", "lpnet", "pruned*", "plan*")
    shutil.copytree(finished_run[0], out, ignore=ignored)
    probed = read_profile(finished_run[0] / "profile.jsonl").header.probe
    assert probed is not None
    probe = DeviceProbe(fingerprint(DeviceSettings(precision="int8")), probed)
    (out / "probe.json").write_text(json.dumps(probe.to_json()))
    done = invoke(
        "run", "--model", f"{net_file}:net", *SMALL_RUN, "--method", "l1", "--dtype", "int8", "--out", out,
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


def test_an_int8_run_ends_with_an_int8_network_within_its_budget(
    int8_run: tuple[Path, dict[str, object]],
) -> None:
    out, result = int8_run
    certificate = Certificate.read(out / "certificate.json")
    tuned = RunDirectory(out).result("finetune", "")
    kinds = {
        name: {n.op_type for n in onnx.load(out / f"{name}.onnx").graph.node} for name in ("base", "pruned")
    }
    assert result["within_budget"] is True
    assert read_profile(out / "profile.jsonl").header.settings.precision == "int8"
    assert certificate.device["settings"]["precision"] == "int8"
    assert "QuantizeLinear" in kinds["pruned"]
    assert "QuantizeLinear" not in kinds["base"]
    assert tuned["accuracy"] == result["accuracy"] == certificate.accuracy
    assert abs(tuned["accuracy"] - tuned["fp32_accuracy"]) < 0.05


def test_an_int8_run_is_priced_and_verified_in_int8(int8_run: tuple[Path, dict[str, object]]) -> None:
    out, result = int8_run
    priced = invoke("predict", "--out", out, "--scale", 1, "--json")
    verified = invoke("verify", "--out", out, "--json")
    assert json.loads(priced.stdout)["predicted_ms"] == pytest.approx(result["dense_ms"], rel=0.3)
    assert json.loads(verified.stdout)["dense_ms"] == result["dense_ms"]
    assert json.loads(verified.stdout)["measured_ms"] == pytest.approx(result["certified_ms"], rel=0.3)


def test_a_network_in_another_number_format_than_the_profile_is_not_measured(
    int8_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(int8_run[0], out)
    shutil.copy(out / "pruned.fp32.onnx", out / "pruned.onnx")
    with pytest.raises(InputError, match=r"pruned\.onnx' is in fp32, but int8 was profiled"):
        measure_pruned(RunDirectory(out), read_profile(out / "profile.jsonl"))


def test_a_further_device_in_another_number_format_is_refused(
    int8_run: tuple[Path, dict[str, object]], finished_run: tuple[Path, dict[str, object]]
) -> None:
    done = invoke("prune", "--out", finished_run[0], "--speedup", 1.4, "--also", f"{int8_run[0]}:0.5")
    assert done.exit_code == 2
    assert "profiled in int8, the run's own in fp32" in done.stderr


def test_a_profile_in_another_number_format_is_not_continued(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    for name in ("base.onnx", "profile.jsonl"):
        shutil.copy(finished_run[0] / name, tmp_path / name)
    done = invoke("profile", "--out", tmp_path, "--candidates", 24, "--held-out", 5, "--dtype", "int8")
    assert done.exit_code == 2
    assert "measured on another device (precision: fp32 and int8, here)" in done.stderr


def test_fp16_is_refused_where_it_would_be_computed_in_fp32(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    shutil.copy(finished_run[0] / "base.onnx", tmp_path / "base.onnx")
    done = invoke("profile", "--out", tmp_path, "--dtype", "fp16")
    assert done.exit_code == 2
    assert "provider cpu cannot run fp16" in done.stderr
    assert "Providers for fp16: cuda, tensorrt" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["base.onnx"]
