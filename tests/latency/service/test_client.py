import numpy as np
import pytest

from latency.client import ServiceClient
from latency.errors import AccessError, NotFoundError, ServiceError, SettingError
from latency.predictor import Predictor
from latency.profiles import parse_profile
from tests.known_network import KnownNetwork
from tests.serving import RunningService


def test_a_remote_predictor_is_the_local_one(service: RunningService, known_network: KnownNetwork) -> None:
    local = Predictor.load(known_network.lpnet_folder)
    widths = np.array([[8, 12], [4, 0], [6, 2], [5.5, 3.25]])
    with service.client() as client:
        client.upload_lpnet(known_network.lpnet_folder)
        manifest = local.manifest
        remote = client.predictor_for(manifest.structure_hash, manifest.fingerprint.digest)
        assert remote.manifest == manifest
        np.testing.assert_array_equal(remote.predict_ms(widths), local.predict_ms(widths))
        assert remote.predict_ms(np.zeros((0, 2))).shape == (0,)
        here, there = local.predict(widths), remote.predict(widths)
        for name in ("latency_ms", "low_ms", "high_ms", "out_of_range", "layer_ms"):
            np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
        for rows in (widths, widths[:1], widths[0]):
            for mine, theirs in zip(local.gradient(rows), remote.gradient(rows), strict=True):
                np.testing.assert_array_equal(theirs, mine)


def test_a_gradient_that_was_asked_for_is_kept(service: RunningService, known_network: KnownNetwork) -> None:
    with service.client() as client:
        remote = client.predictor(client.upload_lpnet(known_network.lpnet_folder).id)
        expected = remote.gradient([8, 12])[1]
    np.testing.assert_array_equal(remote.gradient([8, 12])[1], expected)  # the connection is closed


def test_batches_of_any_size_travel(
    service: RunningService, known_network: KnownNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency.client._LARGEST_BATCH", 7)
    with service.client() as client:
        remote = client.predictor(client.upload_lpnet(known_network.lpnet_folder).id)
        rows = np.tile([[8, 12], [4, 0]], (10, 1))
        np.testing.assert_array_equal(
            remote.predict_ms(rows), Predictor.load(known_network.lpnet_folder).predict_ms(rows)
        )


def test_rows_stream_into_a_profile(service: RunningService, known_network: KnownNetwork) -> None:
    profile = parse_profile(known_network.profile, known_network.lpnet_folder)
    assert profile is not None
    with service.client() as client:
        profile_id = client.begin_profile(profile.header)
        assert client.upload_rows(profile_id, profile.rows[:5]) in (0, 5)
        assert client.upload_rows(profile_id, profile.rows[:5]) == 0
        assert parse_profile(client.download_profile(profile_id), known_network.lpnet_folder) is not None
        assert profile_id in [known.id for known in client.profiles()]
        assert client.devices()[0].digest == profile.header.fingerprint.digest


def test_what_is_wrong_is_said_as_the_registry_says_it(service: RunningService) -> None:
    with service.client() as client, pytest.raises(NotFoundError, match="no LPNet of network abab"):
        client.predictor_for("abab", "device")
    stranger = ServiceClient(service.url, "trimms_wrong")
    with stranger, pytest.raises(AccessError, match="unknown or revoked"):
        stranger.devices()


def test_a_service_that_does_not_answer_is_an_environment_failure() -> None:
    nobody = ServiceClient("http://127.0.0.1:1")
    with nobody, pytest.raises(ServiceError, match=r"http://127.0.0.1:1 does not answer .* is it running"):
        nobody.spaces()


@pytest.mark.parametrize("url", ["board:8080", "ftp://board", "http://board:port"])
def test_addresses_that_are_no_urls_are_refused(url: str) -> None:
    with pytest.raises(SettingError, match="A service is at a URL such as"):
        ServiceClient(url)
