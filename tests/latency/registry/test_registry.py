import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from latency.errors import (
    ConflictError,
    LimitError,
    ModelFileError,
    NotFoundError,
    ProfileError,
    SettingError,
)
from latency.lpnet_archive import archive_of, unzipped, zipped
from latency.lpnet_files import GRADIENT_FILE, MANIFEST_FILE, ONNX_FILE, WEIGHTS_FILE
from latency.number_formats import space_in
from latency.predictor import Predictor
from latency.profiles import parse_profile
from latency.registry import jobs
from latency.registry.registry import Registry
from latency.registry.tokens import token_hash
from tests.known_network import KnownNetwork


def test_a_space_is_known_by_its_structure(registry: Registry, known_network: KnownNetwork) -> None:
    found = registry.networks.add_space(known_network.base, "small")
    assert found == registry.networks.add_space(known_network.base)
    assert (found.structure_hash, found.name) == (known_network.space.structure_hash, "small")
    assert found.summary["full_widths"] == known_network.space.full_widths.tolist()
    assert registry.networks.base(found.structure_hash) == known_network.base


def test_uploads_that_are_no_network_are_refused(registry: Registry) -> None:
    for content, match in ((b"\xff\xff\xff", "no ONNX file"), (b"", "it has no layer, or no input")):
        with pytest.raises(ModelFileError, match=match):
            registry.networks.add_space(content)


def test_an_upload_that_names_another_network_as_its_own_is_refused(
    registry: Registry, known_network: KnownNetwork
) -> None:
    """A network in another number format goes by the hash that it states."""
    int8 = space_in(known_network.space, "int8").model.SerializeToString()
    with pytest.raises(
        ModelFileError, match=r"The upload is in int8; upload the base\.onnx that it was made from"
    ):
        registry.networks.add_space(int8)


def test_a_profile_comes_back_as_it_was(registry: Registry, known_network: KnownNetwork) -> None:
    profile_id, n_new = registry.profiles.upload(known_network.profile)
    assert n_new == 56
    expected = parse_profile(known_network.profile, Path("profile.jsonl"))
    found = registry.profiles.read(profile_id)
    assert expected is not None
    assert (found.header, found.rows) == (expected.header, expected.rows)
    assert found.reference_ms == expected.reference_ms
    record = registry.profiles.get(profile_id)
    assert (record.n_train, record.n_held_out, record.n_failed) == (42, 14, 0)
    assert record.reference_ms == expected.reference_ms  # fixed, as in a file


def test_rows_may_arrive_in_any_portions_any_number_of_times(
    registry: Registry, known_network: KnownNetwork
) -> None:
    lines = known_network.profile.splitlines(keepends=True)
    for n_lines in (1, 11, 6, 57, 57):
        profile_id, _ = registry.profiles.upload(b"".join(lines[:n_lines]))
    assert len(registry.profiles.read(profile_id).rows) == 56
    assert registry.profiles.append(profile_id, registry.profiles.read(profile_id).rows) == 0


def test_another_measurement_under_the_same_key_is_a_conflict(
    registry: Registry, known_network: KnownNetwork
) -> None:
    profile_id, _ = registry.profiles.upload(known_network.profile)
    row = registry.profiles.read(profile_id).rows[0]
    with pytest.raises(ConflictError, match="give the new one a pass of its own"):
        registry.profiles.append(profile_id, [dataclasses.replace(row, ratio=9.0)])
    assert registry.profiles.append(profile_id, [dataclasses.replace(row, ratio=9.0, pass_index=2)]) == 1


def test_rows_of_another_network_or_type_are_refused(registry: Registry, known_network: KnownNetwork) -> None:
    profile_id, _ = registry.profiles.upload(known_network.profile)
    row = dataclasses.replace(registry.profiles.read(profile_id).rows[0], pass_index=2)
    for change, match in (
        ({"widths": (1, 2, 3)}, "A row has 3 widths, the profile 2 groups"),
        ({"widths": (10**30, 2)}, "not within the full ones"),
        ({"n_pairs": "many"}, r"is damaged: Expected `int`, got `str` - at `\$.n_pairs`"),
        ({"ratio_stderr": float("inf")}, "is damaged"),
    ):
        with pytest.raises(ProfileError, match=match):
            registry.profiles.append(profile_id, [dataclasses.replace(row, **change)])  # type: ignore[arg-type]


def test_pages_show_every_row_once(registry: Registry, known_network: KnownNetwork) -> None:
    profile_id, _ = registry.profiles.upload(known_network.profile)
    seen, after = [], 0
    while page := registry.profiles.page(profile_id, after=after, limit=30):
        seen += [row for _, row in page]
        after = page[-1][0]
    assert tuple(seen) == registry.profiles.read(profile_id).rows


def test_a_stored_lpnet_predicts_and_comes_back(registry: Registry, known_network: KnownNetwork) -> None:
    archive = zipped(known_network.lpnet_folder)
    kept = registry.lpnets.add_zip(archive)
    assert registry.lpnets.add_zip(archive) == kept
    assert [record.id for record in registry.lpnets.all(known_network.space.structure_hash)] == [kept.id]
    widths = known_network.space.full_widths
    local, remote = Predictor.load(known_network.lpnet_folder), registry.lpnets.load(kept.id)
    assert remote.predict_ms(widths) == local.predict_ms(widths)
    assert unzipped(registry.lpnets.read_zip(kept.id)) == unzipped(archive)
    assert [device.digest for device in registry.networks.devices()] == [kept.device_digest]


def hostile_archive(kind: str, files: dict[str, bytes]) -> bytes:
    if kind == "path":
        return archive_of({**files, "../lpnet.json": b"{}"})
    if kind == "bomb":
        return archive_of({**files, ONNX_FILE: bytes(65 * 2**20)})
    if kind == "incomplete":
        return archive_of({MANIFEST_FILE: files[MANIFEST_FILE], WEIGHTS_FILE: files[WEIGHTS_FILE]})
    if kind == "hash":
        return archive_of({**files, ONNX_FILE: files[GRADIENT_FILE]})
    if kind == "corrupt":
        record = json.loads(files[MANIFEST_FILE])
        record["sha256"][ONNX_FILE] = hashlib.sha256(b"no model").hexdigest()
        return archive_of({**files, ONNX_FILE: b"no model", MANIFEST_FILE: json.dumps(record).encode()})
    if kind == "other latency":
        record = json.loads(files[MANIFEST_FILE])
        record["manifest"]["reference_ms"] *= 3
        return archive_of({**files, MANIFEST_FILE: json.dumps(record).encode()})
    return b"PK\x03\x04 no archive"


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        ("path", ProfileError, r"holds \['../lpnet.json'\]; allowed are lpnet.json"),
        ("bomb", LimitError, "lpnet.onnx is larger than 64 MiB when unpacked"),
        ("incomplete", ProfileError, "lacks lpnet.onnx"),
        ("hash", ProfileError, "lpnet.onnx is damaged: it is not the file"),
        ("corrupt", ModelFileError, "no ONNX file"),
        ("other latency", ProfileError, "ms for the unpruned network, which takes"),
        ("no archive", ProfileError, "no zip archive"),
    ],
)
@pytest.mark.parametrize("registry", ["sqlite"], indirect=True)
def test_hostile_lpnets_are_refused(
    registry: Registry, known_network: KnownNetwork, kind: str, error: type[Exception], match: str
) -> None:
    files = unzipped(zipped(known_network.lpnet_folder))
    with pytest.raises(error, match=match):
        registry.lpnets.add_zip(hostile_archive(kind, files))
    assert registry.lpnets.all() == []


def test_an_lpnet_without_gradient_is_kept_too(
    registry: Registry, known_network: KnownNetwork, tmp_path: Path
) -> None:
    folder = shutil.copytree(known_network.lpnet_folder, tmp_path / "lpnet")
    record = json.loads((folder / MANIFEST_FILE).read_text())
    del record["sha256"][GRADIENT_FILE]
    (folder / MANIFEST_FILE).write_text(json.dumps(record | {"version": 3}))
    predictor = registry.lpnets.load(registry.lpnets.add(folder).id)
    with pytest.raises(ProfileError, match=r"no lpnet-gradient\.onnx; fit again"):
        predictor.gradient(known_network.space.full_widths)


def test_tokens_are_kept_by_their_hash_until_they_are_revoked(registry: Registry) -> None:
    token = registry.tokens.create("lab", ["write"])
    (known,) = registry.tokens.active()
    assert (known.name, known.sha256, known.scopes) == ("lab", token_hash(token), {"read", "write"})
    with pytest.raises(ConflictError, match="a token named 'lab' already"):
        registry.tokens.create("lab", ["read"])
    registry.tokens.revoke("lab")
    assert registry.tokens.active() == ()
    with pytest.raises(NotFoundError, match="no active token named 'lab'"):
        registry.tokens.revoke("lab")
    with pytest.raises(SettingError, match=r"scopes of read, write; got name 'x', scopes \['all'\]"):
        registry.tokens.create("x", ["all"])


def test_a_job_is_carried_out_once(registry: Registry) -> None:
    first, second = (registry.jobs.submit("train", {"profile_id": name}) for name in "ab")
    claimed = [registry.jobs.claim(), registry.jobs.claim(), registry.jobs.claim()]
    assert [job.id if job else None for job in claimed] == [first.id, second.id, None]
    registry.jobs.finish(first.id, "succeeded", result={"lpnet": "x"})
    registry.jobs.finish(first.id, "failed", error="late")
    assert registry.jobs.get(first.id).state == "succeeded"
    assert registry.jobs.get(first.id).result == {"lpnet": "x"}


def test_jobs_of_a_server_that_died_are_begun_again_but_not_forever(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = registry.jobs.submit("train", {})
    monkeypatch.setattr(jobs, "LOST_AFTER_S", -1.0)
    attempts = [registry.jobs.claim() for _ in range(jobs.MOST_ATTEMPTS + 1)]
    assert [one.attempts if one else None for one in attempts] == [1, 2, 3, None]
    assert registry.jobs.get(job.id).state == "failed"
    assert "begun 3 times" in (registry.jobs.get(job.id).error or "")


def test_jobs_are_cancelled_at_once_while_they_wait_and_by_their_runner_later(registry: Registry) -> None:
    waiting, running = registry.jobs.submit("train", {}), registry.jobs.submit("train", {})
    assert registry.jobs.cancel(waiting.id).state == "cancelled"
    assert registry.jobs.claim() is not None
    assert registry.jobs.beat(running.id)
    assert registry.jobs.cancel(running.id).state == "running"
    assert not registry.jobs.beat(running.id)
    registry.jobs.release(running.id)
    assert registry.jobs.get(running.id).state == "queued"
    with pytest.raises(NotFoundError, match="no job 'x'"):
        registry.jobs.cancel("x")
