import dataclasses
import json
import subprocess
import sys

import pytest

from latency.clock import Clock
from pruning import certificate as certificate_module
from pruning.certificate import (
    CERTIFIED_FILES,
    Certificate,
    CertifiedSettings,
    InterleavedRun,
    LatencySpread,
    RuntimeRecord,
    changed_files,
    recorded_versions,
    utc_now,
)
from pruning.errors import InputError, StorageError
from pruning.files import file_sha256


def make_certificate(**changes):
    values = {
        "budget_ms": 4.0,
        "dense_ms": 8.0,
        "predicted_ms": 3.9,
        "measured_ms": 3.8,
        "measured_ci_ms": (3.7, 3.95),
        "dense_accuracy": 0.98,
        "accuracy": 0.975,
        "dense_macs": 1000,
        "macs": 400,
        "dense_params": 100,
        "params": 30,
        "interleaved": InterleavedRun(LatencySpread(8.1, 8.6), LatencySpread(3.85, 4.1), 48, 0.0125),
        "device": {"cpu_model": "Test CPU", "isa": ["avx2", "fma"], "cpu_limit": None},
        "device_digest": "00ff",
        "runtime": RuntimeRecord("1.20.0", {"session.set_denormal_as_zero": "1"}),
        "settings": CertifiedSettings("CPUExecutionProvider", 1, 1, (1, 3, 32, 32), (0.5,), (0.25,)),
        "seeds": {"seed": 7},
        "versions": {"python": "3.11.0"},
        "sha256": dict.fromkeys(CERTIFIED_FILES, "ab" * 32),
        "created": "2024-05-06T07:08:09+00:00",
    }
    return Certificate(**(values | changes))


def rewrite(path, **changes):
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "certificate.json"
    make_certificate().write(path)
    return path


def test_reads_back_what_was_written(written):
    assert Certificate.read(written) == make_certificate()


def test_file_holds_the_figures_under_the_promised_names(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    promised = {
        "budget_ms": 4.0,
        "dense_ms": 8.0,
        "predicted_ms": 3.9,
        "measured_ms": 3.8,
        "within_budget": True,
        "dense_accuracy": 0.98,
        "accuracy": 0.975,
        "macs": 400,
        "params": 30,
    }
    assert promised.items() <= document.items()


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    Certificate.read(written).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == written.read_bytes()


@pytest.mark.parametrize(("measured_ms", "within"), [(3.999, True), (4.0, True), (4.001, False)])
def test_within_budget_means_measured_no_slower_than_the_budget(measured_ms, within):
    certificate = make_certificate(measured_ms=measured_ms, measured_ci_ms=(3.5, 4.5))
    assert certificate.within_budget is within
    assert certificate.to_json()["within_budget"] is within


def test_a_fast_prediction_does_not_make_a_slow_measurement_a_hit():
    certificate = make_certificate(predicted_ms=1.0, measured_ms=5.0, measured_ci_ms=(4.9, 5.1))
    assert not certificate.within_budget


def test_speedup_is_dense_over_measured():
    certificate = make_certificate(dense_ms=9.0, measured_ms=3.0, measured_ci_ms=(2.9, 3.1))
    assert certificate.speedup == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"budget_ms": 0.0}, "budget_ms should be a positive number, but is 0.0"),
        ({"dense_ms": -1.0}, "dense_ms should be a positive number, but is -1.0"),
        ({"measured_ms": float("nan")}, "measured_ms should be a positive number, but is nan"),
        ({"predicted_ms": float("inf")}, "predicted_ms should be a positive number, but is inf"),
        ({"macs": 0}, "macs should be a positive number, but is 0"),
        ({"accuracy": 97.5}, r"accuracy should be a share in \[0, 1\], but is 97.5"),
        ({"dense_accuracy": float("nan")}, "dense_accuracy should be a share"),
        ({"measured_ci_ms": (3.9, 4.1)}, r"an interval around 3.8 ms, but is \(3.9, 4.1\)"),
        ({"measured_ci_ms": (3.95, 3.7)}, "an interval around 3.8 ms"),
        ({"sha256": {"base.onnx": "ab"}}, "a hash of pruned.onnx, plan.json, pruned.safetensors as well"),
        ({"created": "yesterday"}, "ISO 8601 time in UTC, but is 'yesterday'"),
        ({"created": "2024-05-06T07:08:09+02:00"}, "ISO 8601 time in UTC"),
        ({"created": "2024-05-06T07:08:09"}, "ISO 8601 time in UTC"),
        ({"format_version": 2}, "format_version should be 1, but is 2"),
    ],
)
def test_refuses_values_that_are_no_evidence(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        make_certificate(**changes)


def test_refuses_a_spread_that_no_clock_returns():
    with pytest.raises(InputError, match="p90_ms should be a positive number, but is 0"):
        LatencySpread(1.0, 0.0)


def test_refuses_a_run_without_pairs():
    with pytest.raises(InputError, match="n_pairs should be a positive number, but is 0"):
        InterleavedRun(LatencySpread(1.0, 1.0), LatencySpread(1.0, 1.0), 0, 0.0)


def test_refuses_a_drift_that_is_no_number():
    with pytest.raises(InputError, match="reference_drift should be a finite number, but is nan"):
        InterleavedRun(LatencySpread(1.0, 1.0), LatencySpread(1.0, 1.0), 4, float("nan"))


@pytest.mark.parametrize("figure", [{"within_budget": False}, {"speedup": 99.0}, {"within_budget": None}])
def test_refuses_a_file_that_contradicts_its_own_measurement(written, figure):
    rewrite(written, **figure)
    with pytest.raises(InputError, match=f"{next(iter(figure))} is stated as .* but the measurement"):
        Certificate.read(written)


def test_refuses_a_measurement_that_was_edited_to_fit(written):
    rewrite(written, budget_ms=3.0, within_budget=True)
    with pytest.raises(InputError, match="within_budget is stated as True"):
        Certificate.read(written)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"measured_ms": "3.8"}, "measured_ms should be a number, but is '3.8'"),
        ({"measured_ms": True}, "measured_ms should be a number, but is True"),
        ({"macs": 400.5}, "macs should be an integer, but is 400.5"),
        ({"device_digest": 255}, "device_digest should be a text, but is 255"),
        ({"measured_ci_ms": [3.7, 3.8, 3.9]}, "measured_ci_ms should be a list of 2"),
        ({"measured_ci_ms": 3.8}, "measured_ci_ms should be a list, but is 3.8"),
        ({"seeds": {"seed": "seven"}}, "seeds.seed should be an integer, but is 'seven'"),
        ({"seeds": [7]}, r"seeds should be an object, but is \[7\]"),
        ({"settings": None}, "settings should be an object, but is None"),
        ({"interleaved": {"n_pairs": 3}}, "interleaved lacks dense, pruned, reference_drift"),
        ({"budget_ms": 10**400}, "budget_ms is too large"),
        ({"format_version": 99}, "format_version should be 1, but is 99"),
    ],
)
def test_names_the_damaged_field(written, changes, complaint):
    rewrite(written, **changes)
    with pytest.raises(InputError, match=complaint) as caught:
        Certificate.read(written)
    assert str(written) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_certificates_from_before_latencies_were_brought_to_the_clocks_pace(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    del document["interleaved"]["pace_exponent"]
    written.write_text(json.dumps(document), encoding="utf-8")

    certificate = Certificate.read(written)

    assert certificate.clock == Clock(certificate.dense_ms, 0.0)


def test_refuses_a_file_that_does_not_say_its_version(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    del document["format_version"]
    written.write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(InputError, match="format_version should be 1, but is None"):
        Certificate.read(written)


def test_names_missing_fields(written):
    document = json.loads(written.read_text(encoding="utf-8"))
    del document["measured_ms"], document["seeds"]
    written.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match="the document lacks measured_ms, seeds"):
        Certificate.read(written)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"not json"])
def test_says_that_a_file_is_no_json(tmp_path, content):
    path = tmp_path / "certificate.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no certificate: it is not valid JSON"):
        Certificate.read(path)


def test_refuses_json_that_is_no_object(tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(InputError, match=r"the document should be an object, but is \[1, 2\]"):
        Certificate.read(path)


def test_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the certificate .*none\.json: No such file"):
        Certificate.read(tmp_path / "none.json")


def test_cannot_be_changed_after_the_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_certificate().measured_ms = 1.0


def test_changed_files_are_those_missing_or_with_another_hash(tmp_path):
    for name in CERTIFIED_FILES:
        (tmp_path / name).write_text(name, encoding="utf-8")
    hashes = {name: file_sha256(tmp_path / name) for name in CERTIFIED_FILES}
    certificate = make_certificate(sha256=hashes)
    assert changed_files(certificate.sha256, tmp_path) == ()
    (tmp_path / "plan.json").write_text("other", encoding="utf-8")
    (tmp_path / "base.onnx").unlink()
    assert changed_files(certificate.sha256, tmp_path) == ("base.onnx", "plan.json")


def test_recorded_versions_are_those_that_are_imported():
    import onnx
    import torch

    versions = recorded_versions()
    assert versions["onnx"] == onnx.__version__
    # A local suffix such as +cpu is part of one and not always of the other.
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(certificate_module, "RECORDED_PACKAGES", ("no-such-package-installed",))
    assert list(recorded_versions()) == ["python"]


def test_the_time_of_writing_is_accepted():
    assert make_certificate(created=utc_now()).created.endswith("+00:00")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match=r"Cannot write '.*certificate\.json'"):
        make_certificate().write(tmp_path / "file" / "certificate.json")


def test_reading_needs_no_torch(written):
    code = (
        "import sys; from pathlib import Path; from pruning.certificate import Certificate; "
        f"Certificate.read(Path({str(written)!r})); "
        "print({'torch', 'sklearn', 'pandas', 'matplotlib', 'numpy'} & sys.modules.keys())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")
