import gzip
import io
import json
import logging
import sys
import time
from collections.abc import Iterator

import httpx
import numpy as np
import onnx
import pyarrow.parquet
import pytest
import torch

from latency.candidate import candidate_model, first_channels
from latency.errors import NotFoundError, WidthError
from latency.lpnet_archive import zipped
from latency.npy import NPY, npy_array, npy_bytes
from latency.predictor import Predictor
from latency.registry.registry import Registry
from latency.service.logs import JsonFormatter, RequestLog
from latency.service.settings import ServiceSettings
from tests.known_network import KnownNetwork
from tests.serving import RunningService, running


@pytest.fixture(scope="session")
def lpnet_id(service: RunningService, known_network: KnownNetwork) -> str:
    with service.http(service.writer) as http:
        assert http.post("/v1/spaces?name=small", content=known_network.base).status_code == 201
        assert http.post("/v1/profiles", content=known_network.profile).status_code == 201
        answer = http.post("/v1/lpnets", content=zipped(known_network.lpnet_folder))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def path(lpnet_id: str) -> str:
    return f"/v1/lpnets/{lpnet_id}"


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    with service.http(service.writer) as client:
        yield client


WIDTHS = [[8, 12], [4, 0], [6, 2], [5.5, 3.25]]


def test_predictions_are_those_of_the_local_files(
    http: httpx.Client, path: str, lpnet_id: str, known_network: KnownNetwork
) -> None:
    local = Predictor.load(known_network.lpnet_folder).predict(WIDTHS)
    answer = http.post(f"{path}/predict", json={"widths": WIDTHS}).json()
    assert (answer["lpnet"], answer["unit"]) == (lpnet_id, "ms")
    for name in ("latency_ms", "low_ms", "high_ms"):
        np.testing.assert_allclose(answer[name], getattr(local, name), rtol=1e-6)
    assert answer["out_of_range"] == local.out_of_range.tolist()
    single = http.post(f"{path}/predict", json={"widths": WIDTHS[0]}).json()
    assert single["latency_ms"] == pytest.approx(answer["latency_ms"][:1])


def test_many_vectors_travel_in_numpys_format(http: httpx.Client, path: str) -> None:
    expected = http.post(f"{path}/predict", json={"widths": WIDTHS}).json()
    body = npy_bytes(np.array(WIDTHS, dtype=np.float32))
    answer = http.post(f"{path}/predict", content=body, headers={"Content-Type": NPY, "Accept": NPY})
    assert answer.headers["content-type"] == NPY
    columns = npy_array(answer.content)
    np.testing.assert_array_equal(columns[:, 0], expected["latency_ms"])
    np.testing.assert_array_equal(columns[:, 3] > 0, expected["out_of_range"])


def test_the_gradient_is_torchs_own_and_agrees_with_finite_differences(
    http: httpx.Client, path: str, known_network: KnownNetwork
) -> None:
    widths = torch.tensor(WIDTHS)
    answer = http.post(f"{path}/gradient", json={"widths": WIDTHS}).json()
    found = np.array(answer["gradient_ms_per_channel"])
    expected = torch.func.grad(lambda w: known_network.lpnet(w).sum())(widths)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    # below a grid point, where the slope is the one that the point has
    below = [8 - 0.25, 12]
    ends = http.post(f"{path}/gradient", json={"widths": [[8, 12], below]}).json()["latency_ms"]
    assert (ends[0] - ends[1]) / 0.25 == pytest.approx(found[0, 0], rel=0.02)


def test_layers_shares_sum_up_to_the_latency(http: httpx.Client, path: str) -> None:
    answer = http.post(f"{path}/layers", json={"widths": WIDTHS}).json()
    total = http.post(f"{path}/predict", json={"widths": WIDTHS}).json()["latency_ms"]
    assert answer["layer_names"][-1] == "(no single layer)"
    np.testing.assert_allclose(np.sum(answer["layer_ms"], axis=1), total, rtol=1e-5)


def test_a_pruned_network_is_priced_by_its_recovered_widths(
    http: httpx.Client, path: str, known_network: KnownNetwork
) -> None:
    for widths in ([6, 8], [4, 0], [8, 12]):
        pruned = candidate_model(known_network.space, first_channels(widths)).SerializeToString()
        answer = http.post(f"{path}/predict-onnx", content=pruned).json()
        assert list(answer["widths"].values()) == widths
        expected = http.post(f"{path}/predict", json={"widths": widths}).json()["latency_ms"][0]
        assert answer["latency_ms"] == expected


def test_networks_that_are_no_pruned_version_are_refused(
    http: httpx.Client, path: str, known_network: KnownNetwork
) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(known_network.space.model)
    other.graph.initializer[0].name = "renamed"
    for body, match in ((other.SerializeToString(), "no pruned version"), (b"\xff\xff", "no ONNX file")):
        answer = http.post(f"{path}/predict-onnx", content=body)
        assert answer.status_code == 422
        assert match in answer.json()["detail"] or "ModelFileError" in answer.json()["type"]


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        (b'{"widths": [[9, 12]]}', 422, "Group 'stem' has 8 channels; width 9 in row 0"),
        (b'{"widths": [[8, 1e40]]}', 422, "width 1e+40 in row 0"),
        (b'{"widths": [[8, NaN]]}', 422, "The body is JSON such as"),
        (b'{"widths": [[8, 12], [8]]}', 422, "The body is JSON such as"),
        (b'{"widths": [8]}', 422, "Expected 2 widths for each network"),
        (b'{"widths": []}', 422, "There are no widths: the array's shape is (0,)"),
        (b'{"width": [8, 12]}', 422, "The body is JSON such as"),
        (b"[" * 50_000, 422, "The body is JSON such as"),
        (
            json.dumps({"widths": [[8, 12]] * 101}).encode(),
            413,
            "101 width vectors in one request; at most 100",
        ),
        (b" " * 100_001, 413, "larger than the 0.0953674 MiB"),
    ],
)
def test_bad_widths_are_refused_with_what_is_allowed(
    http: httpx.Client, path: str, body: bytes, status: int, match: str
) -> None:
    answer = http.post(f"{path}/predict", content=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert match in problem["detail"]
    assert (problem["status"], problem["instance"]) == (status, answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 1, 1), }",
        "[" * 900,
        "x" * 2000,
    ],
)
def test_hostile_headers_of_numpys_format_are_refused(http: httpx.Client, path: str, header: str) -> None:
    text = header.encode()
    body = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8)
    answer = http.post(f"{path}/predict", content=body, headers={"Content-Type": NPY})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:trimms:InputError")


def test_a_body_without_a_length_is_limited_too(http: httpx.Client, path: str) -> None:
    answer = http.post(f"{path}/predict", content=(b" " * 10_000 for _ in range(30)))
    assert answer.status_code == 413


def test_compressed_bodies_are_refused(http: httpx.Client, path: str) -> None:
    body = gzip.compress(b" " * 10**6)
    answer = http.post(f"{path}/predict", content=body, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_a_profile_is_read_in_pages_as_lines_and_as_parquet(
    http: httpx.Client, lpnet_id: str, known_network: KnownNetwork
) -> None:
    (record,) = http.get("/v1/profiles").json()
    profile = f"/v1/profiles/{record['id']}"
    rows, after = [], 0
    while after is not None:
        page = http.get(f"{profile}/rows", params={"after": after, "limit": 33}).json()
        rows, after = rows + page["rows"], page["next_after"]
    expected = [json.loads(line) for line in known_network.profile.splitlines()[1:]]
    assert rows == expected
    lines = http.get(f"{profile}/jsonl").text.splitlines()
    assert [json.loads(line) for line in lines[:57]] == [
        json.loads(line) for line in known_network.profile.splitlines()
    ]
    table = pyarrow.parquet.read_table(io.BytesIO(http.get(f"{profile}/parquet").content))
    assert table.column("widths").to_pylist() == [row["widths"] for row in expected]
    assert len(http.get(f"{profile}/measured?held_out=true").json()["latency_ms"]) == 7
    again = "\n".join(lines[1:6])
    assert http.post(f"{profile}/rows", content=again).json()["n_new"] == 0


def test_devices_and_spaces_are_listed(
    http: httpx.Client, lpnet_id: str, known_network: KnownNetwork
) -> None:
    (device,) = http.get("/v1/devices").json()
    assert http.get(f"/v1/devices/{device['digest']}").json() == device
    (space,) = http.get("/v1/spaces").json()
    assert (space["name"], space["structure_hash"]) == ("small", known_network.space.structure_hash)
    assert http.get(f"/v1/spaces/{space['structure_hash']}/base").content == known_network.base
    (summary,) = http.get("/v1/lpnets", params={"device_digest": device["digest"]}).json()
    assert summary["id"] == lpnet_id
    assert http.get(f"/v1/lpnets/{lpnet_id}/files").content[:2] == b"PK"


@pytest.mark.parametrize(
    ("method", "address", "status", "match"),
    [
        ("GET", "/v1/lpnets/none", 404, "There is no LPNet 'none'"),
        ("POST", "/v1/lpnets/none/predict", 404, "There is no LPNet 'none'"),
        ("GET", "/v1/nothing", 404, "see /openapi.json"),
        ("PUT", "/v1/devices", 405, "see /openapi.json"),
        ("GET", "/v1/profiles/x/rows?limit=0", 422, "query.limit"),
        ("POST", "/v1/jobs", 422, "A job is JSON such as"),
    ],
)
def test_everything_that_is_wrong_is_a_problem(
    http: httpx.Client, method: str, address: str, status: int, match: str
) -> None:
    answer = http.request(method, address, content=b'{"widths": [1]}' if "predict" in address else None)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert match in answer.json()["detail"]


def test_training_where_torch_is_missing_says_so(http: httpx.Client, lpnet_id: str) -> None:
    (record,) = http.get("/v1/profiles").json()
    answer = http.post("/v1/jobs", json={"profile_id": record["id"]})
    assert (answer.status_code, answer.json()["type"]) == (501, "urn:trimms:NotInstalledError")
    assert "pip install 'trimms[prune]'" in answer.json()["detail"]


def test_tokens_are_asked_for_and_their_scopes_hold(service: RunningService, path: str) -> None:
    body = {"widths": [8, 12]}
    for token, status in ((None, 401), ("trimms_wrong", 401), (service.reader, 200), (service.writer, 200)):
        with service.http(token) as http:
            assert http.post(f"{path}/predict", json=body).status_code == status
            assert http.get("/metrics").status_code == status
            assert http.get("/health/live").status_code == 200
    with service.http(service.reader) as http:
        answer = http.post("/v1/spaces", content=b"")
        assert answer.status_code == 403
        assert answer.json()["detail"] == "Token 'reader' allows read; this needs write."


def test_tokens_that_are_made_and_revoked_elsewhere_count_within_seconds(
    own_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency.service.app.REFRESH_S", 0.02)
    settings = ServiceSettings(run_jobs=False)
    token = own_registry.tokens.create("leaver", ["read"])
    with running(own_registry, settings) as service, service.http(token) as http:
        assert _answers_in_time(http, 200)
        own_registry.tokens.revoke("leaver")
        assert _answers_in_time(http, 401)


def _answers_in_time(http: httpx.Client, status: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if http.get("/v1/devices").status_code == status:
            return True
        time.sleep(0.01)
    return False


def test_requests_are_counted_and_logged(service: RunningService, http: httpx.Client, path: str) -> None:
    http.get("/v1/devices")
    answer = http.post(f"{path}/predict", json={"widths": [8, 12]}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    text = http.get("/metrics").text
    assert 'trimms_requests_total{method="POST",route="/v1/lpnets/{lpnet_id}/predict",status="200"}' in text
    assert 'trimms_requests_total{method="GET",route="/v1/devices",status="200"}' in text
    assert "trimms_predictions_total" in text
    (logged,) = (fields for fields in service.requests if fields["request_id"] == "mine-1")
    stream = io.BytesIO()
    RequestLog(stream)(logged)
    line = json.loads(stream.getvalue())
    assert (line["message"], line["path"], line["status"], line["token"]) == (
        "request",
        f"{path}/predict",
        200,
        "writer",
    )


def test_failures_are_logged_with_their_traceback() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        record = logging.LogRecord("latency", logging.ERROR, "", 0, "failure", None, sys.exc_info())
    record.request_id = "mine-2"
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["request_id"]) == ("error", "mine-2")
    assert "RuntimeError: broken" in line["traceback"]


def test_strange_request_ids_are_replaced(http: httpx.Client) -> None:
    answer = http.get("/health/ready", headers={"X-Request-Id": 'x" injected'})
    assert answer.json() == {"status": "ready"}
    assert "injected" not in answer.headers["x-request-id"]


def test_too_many_requests_are_told_when_to_come_back(own_registry: Registry) -> None:
    settings = ServiceSettings(requests_per_second=0.1, burst=3, run_jobs=False)
    with running(own_registry, settings) as service, service.http(service.reader) as http:
        answers = [http.get("/v1/devices") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "10"


def test_without_tokens_only_this_machine_is_served(own_registry: Registry) -> None:
    settings = ServiceSettings(run_jobs=False)
    with running(own_registry, settings, with_tokens=False) as service, service.http() as http:
        assert http.get("/v1/devices").status_code == 200
        for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example:8080"}):
            answer = http.get("/v1/devices", headers=header)
            assert answer.status_code == 401
            assert "only localhost is served" in answer.json()["detail"]


def test_the_schema_describes_every_route_with_examples(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    predict = schema["paths"]["/v1/lpnets/{lpnet_id}/predict"]["post"]
    assert predict["requestBody"]["content"]["application/json"]["example"]
    assert {"/v1/devices", "/v1/spaces", "/v1/profiles", "/v1/jobs", "/metrics"} <= set(schema["paths"])


def test_the_client_raises_what_the_registry_raised(service: RunningService, lpnet_id: str) -> None:
    with service.client() as client:
        with pytest.raises(NotFoundError, match="There is no LPNet 'none'"):
            client.predictor("none")
        with pytest.raises(WidthError, match="Group 'stem' has 8 channels; width 9 in row 0"):
            client.predictor(lpnet_id).predict_ms([9, 12])
