import dataclasses
import errno
import os

import pytest

from latency.device import DeviceSettings, fingerprint
from latency.errors import DeviceMismatchError, EnvironmentFailure, ProfileError
from latency.grid import Grid
from latency.journal import open_journal, require_same
from latency.measure import Protocol
from latency.profile_rows import ProfileHeader, ProfileRow
from latency.profiles import REFERENCE_ROWS, read_profile

HEADER = ProfileHeader(
    fingerprint=fingerprint(DeviceSettings()),
    protocol=Protocol(),
    structure_hash="abcdef0123456789",
    group_names=("stem",),
    full_widths=(512,),
    grid=Grid(((16, 512),)),
    seed=7,
)


def _row(width: int, reference_ms: float = 2.0) -> ProfileRow:
    return ProfileRow(
        (width,), "train", 0, "ok", ratio=0.5, ratio_stderr=0.01, candidate_ms=1.0, reference_ms=reference_ms
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "profile.jsonl"
    with open_journal(path) as journal:
        journal.start(HEADER)
        journal.append(_row(1))
        journal.append(_row(2))
    return path


def test_a_new_journal_has_no_header(tmp_path):
    with open_journal(tmp_path / "profile.jsonl") as journal:
        assert journal.header is None
        with pytest.raises(ProfileError, match="no header yet"):
            _ = journal.profile


def test_rows_are_there_when_the_journal_is_opened_again(path):
    with open_journal(path) as journal:
        assert journal.header == HEADER
        assert journal.keys == {((1,), "train", 0), ((2,), "train", 0)}
        journal.append(_row(3))
    assert [row.widths for row in read_profile(path).rows] == [(1,), (2,), (3,)]


def test_every_row_is_readable_at_once(path):
    with open_journal(path) as journal:
        journal.append(_row(3))
        assert len(read_profile(path).rows) == 3


def test_wherever_a_line_is_torn_it_is_cut_off_and_written_again(path):
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        with open_journal(path) as journal:
            assert journal.keys == {((1,), "train", 0)}
            journal.append(_row(2))
        assert path.read_bytes() == whole


def test_a_torn_header_is_begun_anew(path):
    path.write_bytes(path.read_bytes()[:50])
    with open_journal(path) as journal:
        assert journal.header is None
        journal.start(HEADER)
    assert read_profile(path).header == HEADER


@pytest.mark.parametrize("content", [b"\xff\xd8 a photograph", b"x", b'{"kind": "song"}\n'])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, content):
    other = tmp_path / "photo.jpg"
    other.write_bytes(content)
    with pytest.raises(ProfileError, match=r"photo\.jpg is no profile set"), open_journal(other):
        pass
    assert other.read_bytes() == content


def test_a_candidate_is_written_once_only(path):
    with (
        open_journal(path) as journal,
        pytest.raises(ProfileError, match=r"holds train widths \[1\] already"),
    ):
        journal.append(_row(1))


def test_a_header_is_written_once_only(path):
    with open_journal(path) as journal, pytest.raises(ProfileError, match="has a header already"):
        journal.start(HEADER)


def test_two_cannot_write_the_same_journal(path):
    with (
        open_journal(path),
        pytest.raises(ProfileError, match=r"Another process is profiling into .*profile\.jsonl"),
        open_journal(path),
    ):
        pass


def test_the_clock_is_fixed_by_the_first_rows_and_stays(tmp_path):
    path = tmp_path / "profile.jsonl"
    with open_journal(path) as journal:
        journal.start(HEADER)
        for width in range(1, REFERENCE_ROWS + 1):
            journal.append(_row(width, reference_ms=2.0))
        assert read_profile(path).fixed_reference_ms == 2.0
        journal.append(_row(500, reference_ms=9.0))
    assert read_profile(path).reference_ms == 2.0


def test_the_clock_of_a_short_profile_stays_when_it_is_extended(path):
    with open_journal(path) as journal:
        journal.fix_reference()
        journal.fix_reference()
    with open_journal(path) as journal:
        for width in range(10, 100):
            journal.append(_row(width, reference_ms=9.0))
    assert read_profile(path).reference_ms == 2.0
    assert path.read_bytes().count(b'"reference"') == 1


def test_a_full_disk_is_reported_and_the_file_stays_readable(path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_journal(path) as journal:
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(EnvironmentFailure, match="No space left on device"):
            journal.append(_row(3))
        monkeypatch.undo()
    assert len(read_profile(path).rows) >= 2


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(EnvironmentFailure, match="Cannot open the profile set"), open_journal(tmp_path):
        pass


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"structure_hash": "9" * 64},
            ProfileError,
            "another network: structure hash abcdef012345 there, 999",
        ),
        ({"seed": 8}, ProfileError, "another seed: 7 there, 8 here"),
        ({"protocol": Protocol(min_pairs=20)}, ProfileError, "another protocol: .*min_pairs=16.* there"),
        ({"grid": Grid(((8, 512),))}, ProfileError, "another grid"),
        (
            {"fingerprint": dataclasses.replace(HEADER.fingerprint, ort_version="0.1")},
            DeviceMismatchError,
            r"another device \(ort_version: .* and 0\.1",
        ),
    ],
)
def test_measurements_of_another_kind_are_not_added(path, change, error, message):
    require_same(HEADER, HEADER, path)
    with pytest.raises(error, match=message):
        require_same(HEADER, dataclasses.replace(HEADER, **change), path)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)

    with (
        pytest.raises(EnvironmentFailure, match=r"Cannot lock the profile set .*profile\.jsonl: No locks"),
        open_journal(tmp_path / "profile.jsonl"),
    ):
        pass
