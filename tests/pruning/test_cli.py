"""The command line as a user meets it: one small run end to end, and what may follow it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latency.profiles import read_profile
from latency.registry.registry import Registry
from latency.service.settings import ServiceSettings
from pruning.certificate import Certificate
from pruning.checkpoint import load_checkpoint
from pruning.plan import Plan
from pruning.run import RunDirectory
from pruning.stages import FinetuneOptions, Workbench, finetune_stage
from pruning.surgery import load_slim
from pruning.verify import Verification, certify
from tests.command_line import SMALL_RUN, invoke
from tests.serving import running

pytestmark = pytest.mark.usefixtures("two_quick_sessions")


def test_a_run_ends_within_its_budget(finished_run: tuple[Path, dict[str, object]]) -> None:
    _, result = finished_run

    assert result["within_budget"] is True
    assert result["measured_ms"] <= result["budget_ms"]
    assert result["budget_ms"] == pytest.approx(result["dense_ms"] / 1.4)


def test_a_run_leaves_everything_a_user_needs(finished_run: tuple[Path, dict[str, object]]) -> None:
    out, _ = finished_run

    names = {path.name for path in out.iterdir()}
    wanted = {"base.onnx", "pruned.onnx", "pruned.safetensors", "pruned.pt2", "plan.json", "report.html"}
    assert wanted | {"certificate.json", "profile.jsonl", "lpnet", "run.json"} <= names


def test_the_certificate_tells_what_was_measured(finished_run: tuple[Path, dict[str, object]]) -> None:
    out, result = finished_run

    certificate = Certificate.read(out / "certificate.json")

    assert certificate.within_budget
    assert certificate.measured_ms == pytest.approx(result["certified_ms"])
    assert certificate.macs < certificate.dense_macs
    assert certificate.params < certificate.dense_params
    assert certificate.settings.threads == 1


def test_all_forms_of_the_result_compute_the_same(
    finished_run: tuple[Path, dict[str, object]], net_file: Path
) -> None:
    import onnxruntime

    out, _ = finished_run
    sys.path.insert(0, str(net_file.parent))
    from net import net

    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module = load_slim(net, out / "plan.json", out / "pruned.safetensors")
    program = torch.export.load(out / "pruned.pt2").module()
    session = onnxruntime.InferenceSession(out / "pruned.onnx", providers=["CPUExecutionProvider"])

    with torch.no_grad():
        scores = module(images).numpy()
        np.testing.assert_allclose(program(images).numpy(), scores, rtol=1e-4, atol=1e-5)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-4)


def test_the_same_command_again_does_no_stage_twice(
    finished_run: tuple[Path, dict[str, object]], net_file: Path
) -> None:
    out, _ = finished_run
    before = {name: (out / name).stat().st_mtime_ns for name in ("profile.jsonl", "plan.json", "pruned.onnx")}

    done = invoke("run", "--model", f"{net_file}:net", *SMALL_RUN, "--out", out, "--json")

    assert done.exit_code == 0, done.output
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}


def test_a_finished_run_is_verified_again(finished_run: tuple[Path, dict[str, object]]) -> None:
    out, _ = finished_run

    done = invoke("verify", "--out", out, "--json")

    result = json.loads(done.stdout)
    assert result["certified_ms"] == pytest.approx(Certificate.read(out / "certificate.json").measured_ms)
    assert done.exit_code == (0 if result["agrees"] and result["within_budget"] else 1)


def test_widths_are_priced(finished_run: tuple[Path, dict[str, object]]) -> None:
    out, result = finished_run

    full = json.loads(invoke("predict", "--out", out, "--scale", 1, "--json").stdout)
    half = json.loads(invoke("predict", "--out", out, "--scale", 0.5, "--json").stdout)

    assert full["predicted_ms"] == pytest.approx(result["dense_ms"], rel=0.2)
    assert half["predicted_ms"] < full["predicted_ms"]
    assert half["low_ms"] < half["predicted_ms"] < half["high_ms"]
    assert sum(half["layer_ms"].values()) == pytest.approx(half["predicted_ms"])
    shown = invoke("predict", "--out", out, "--scale", 0.5).stdout
    assert max(half["layer_ms"], key=half["layer_ms"].__getitem__) in shown


def test_an_impossible_budget_is_refused_with_the_smallest_latency(
    finished_run: tuple[Path, dict[str, object]],
) -> None:
    out, _ = finished_run

    done = invoke("prune", "--out", out, "--budget-ms", "0.001")

    assert done.exit_code == 2
    assert "0.001 ms is out of reach: the smallest network of this space takes" in done.stderr


def test_a_changed_file_is_not_verified(finished_run: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    (copy / "pruned.onnx").write_bytes((copy / "pruned.onnx").read_bytes() + b"\0")

    done = invoke("verify", "--out", copy)

    assert done.exit_code == 2
    assert "pruned.onnx changed or missing" in done.stderr


def test_a_network_without_a_certificate_gets_one(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    (copy / "certificate.json").unlink()

    done = invoke("verify", "--out", copy, "--json")

    assert done.exit_code in (0, 1), done.output
    assert Certificate.read(copy / "certificate.json").budget_ms == finished_run[1]["budget_ms"]


@pytest.mark.parametrize("name", ["plan.json", "pruned.onnx"])
def test_what_the_fine_tuning_has_not_made_is_not_certified(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    plan = Plan.read(copy / "plan.json")
    if name == "plan.json":
        kept = {group: positions[:-1] or positions for group, positions in plan.kept.items()}
        replace(plan, kept=kept).write(copy / name)
    else:
        (copy / name).write_bytes((copy / "base.onnx").read_bytes())

    done = invoke("verify", "--out", copy, "--renew")

    assert done.exit_code == 2
    assert f"{name} in '{copy}' changed or missing since the fine-tuning" in done.stderr


def test_a_fine_tuning_used_again_takes_the_new_budget_and_completes_the_plan(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    plan = Plan.read(copy / "plan.json")
    replace(plan, modules=()).write(copy / "plan.json")
    pruned, tuned = (json.loads((copy / f"stages/{name}.json").read_text()) for name in ("prune", "finetune"))
    pruned["result"]["budget_ms"] = 0.123
    (copy / "stages/prune.json").write_text(json.dumps(pruned))

    found = finetune_stage(Workbench(RunDirectory(copy)), FinetuneOptions(**tuned["inputs"]["options"]))

    assert (found["budget_ms"], found["history"]) == (0.123, tuned["result"]["history"])
    assert Plan.read(copy / "plan.json") == plan
    assert certify(RunDirectory(copy)).certificate.budget_ms == 0.123


def test_a_run_of_another_device_is_not_verified(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    header, *rows = (copy / "profile.jsonl").read_text().splitlines(keepends=True)
    record = json.loads(header)
    record["fingerprint"]["cpu_model"] = "Another CPU"
    (copy / "profile.jsonl").write_text(json.dumps(record) + "\n" + "".join(rows))

    done = invoke("verify", "--out", copy)

    assert done.exit_code == 2
    assert "profiled on another device (cpu_model: Another CPU and" in done.stderr


def test_a_network_that_misses_its_budget_is_cut_again(
    finished_run: tuple[Path, dict[str, object]],
    net_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    before = json.loads((copy / "stages/prune.json").read_text())["result"]
    measured = []

    def slow_at_first(run: RunDirectory) -> Verification:
        found = certify(run)
        measured.append(found.measured_ms)
        if len(measured) == 1:
            missed_ms = 1.1 * found.certificate.budget_ms
            return replace(found, measured_ms=missed_ms, within_budget=False)
        return found

    monkeypatch.setattr("pruning.pipeline.certify", slow_at_first)
    done = invoke("run", "--model", f"{net_file}:net", *SMALL_RUN, "--out", copy, "--json")

    after = json.loads((copy / "stages/prune.json").read_text())["result"]
    assert done.exit_code == 0, done.output
    assert "are above the budget: cut narrower" in done.stderr
    assert after["corrections"] == 1
    assert after["predicted_ms"] < before["predicted_ms"]
    assert measured[1] < measured[0]


def test_other_settings_in_the_same_directory_are_refused(
    finished_run: tuple[Path, dict[str, object]], net_file: Path
) -> None:
    done = invoke("run", "--model", f"{net_file}:net", *SMALL_RUN, "--seed", "7", "--out", finished_run[0])

    assert done.exit_code == 2
    assert "holds a run with seed 0, not 7" in done.stderr


def test_a_device_that_was_not_profiled_is_refused(finished_run: tuple[Path, dict[str, object]]) -> None:
    done = invoke("prune", "--out", finished_run[0], "--speedup", 1.4, "--also", "nowhere:0.5")

    assert done.exit_code == 2
    assert "nowhere/profile.jsonl' does not exist; run `trimms profile --out nowhere`" in done.stderr


def test_a_service_alone_is_no_further_device(finished_run: tuple[Path, dict[str, object]]) -> None:
    done = invoke("prune", "--out", finished_run[0], "--speedup", 1.4, "--also", "http://lab:8080")

    assert done.exit_code == 2
    assert "an address such as http://lab:8080/v1/lpnets/ID; got 'http://lab'" in done.stderr


def test_a_run_meets_the_budget_of_a_second_setting_too(
    finished_run: tuple[Path, dict[str, object]], net_file: Path, tmp_path: Path
) -> None:
    """The second is the same device again, with a budget that binds."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(finished_run[0], folder)
    tight_ms = 0.85 * finished_run[1]["budget_ms"]

    done = invoke(
        "run", "--model", f"{net_file}:net", *SMALL_RUN, "--method", "l1", "--also", f"{other}:{tight_ms}",
        "--out", copy, "--json",
    )  # fmt: skip

    result = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    (there,) = result["also"]
    assert there["measured_ms"] <= there["budget_ms"] == pytest.approx(tight_ms)
    assert "fine-tune: recover accuracy in 2 epochs" in done.stderr  # the one that l1 does not search in
    assert Plan.read(copy / "plan.json").provenance["criterion"] == "l1"


def test_a_profile_goes_into_a_registry_too(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    """All is measured already; that a service is away costs the exit code, and nothing else."""
    out, registry = tmp_path / "out", Registry.in_folder(tmp_path / "registry")
    shutil.copytree(finished_run[0], out)
    command = ("profile", "--out", out, "--candidates", 24, "--held-out", 5, "--registry")

    with running(registry, ServiceSettings(run_jobs=False), with_tokens=False) as service:
        done = invoke(*command, service.url)
    later = invoke(*command, service.url)

    assert done.exit_code == 0, done.stderr
    (record,) = registry.profiles.all()
    assert registry.profiles.read(record.id).digest == read_profile(out / "profile.jsonl").digest
    assert registry.networks.base(record.structure_hash) == (out / "base.onnx").read_bytes()
    registry.close()
    assert later.exit_code == 3
    assert "The profile is complete" in later.stderr
    assert "is it running? Give the same command again" in later.stderr


def test_a_provider_that_is_not_there_is_refused(
    finished_run: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    tmp_path.joinpath("out").mkdir()
    shutil.copy(finished_run[0] / "base.onnx", tmp_path / "out" / "base.onnx")

    done = invoke("profile", "--out", tmp_path / "out", "--provider", "qnn")

    assert done.exit_code == 2
    assert "QNN" in done.stderr


def test_a_run_killed_while_fine_tuning_goes_on_where_it_was(
    finished_run: tuple[Path, dict[str, object]], net_file: Path, tmp_path: Path
) -> None:
    """Killed once two of three epochs are on disk; none of them, and no measurement, is made twice."""
    out = tmp_path / "out"
    shutil.copytree(finished_run[0], out)
    for name in ("finetune", "stages/finetune.json", "pruned.onnx"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pruning.cli", "finetune", "--epochs", "3", "--out", str(out)]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while n_epochs_in(out / "finetune") < 2 and time.monotonic() < deadline and victim.poll() is None:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    before = n_epochs_in(out / "finetune")
    assert before >= 2

    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stderr
    history = json.loads((out / "stages" / "finetune.json").read_text())["result"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert (out / "profile.jsonl").read_bytes() == (finished_run[0] / "profile.jsonl").read_bytes()


def n_epochs_in(folder: Path) -> int:
    saved = [load_checkpoint(path) for path in folder.glob("state-*.safetensors")]
    return max((len(state.record["rows"]) for state in saved if state is not None), default=0)
