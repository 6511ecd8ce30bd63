import asyncio
import contextlib

import pytest

from latency.client import ServiceClient
from latency.errors import NotFoundError, ServiceError
from latency.registry.registry import Registry
from latency.service import runner
from latency.service.runner import JobRunner
from latency.service.settings import ServiceSettings
from tests.known_network import KnownNetwork
from tests.serving import running


async def _run_for(registry: Registry, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(JobRunner(registry).run(), seconds)


def test_a_runner_that_is_stopped_gives_its_job_back(
    own_registry: Registry, known_network: KnownNetwork
) -> None:
    own_registry.networks.add_space(known_network.base)
    profile_id, _ = own_registry.profiles.upload(known_network.profile)
    job = own_registry.jobs.submit("train", {"profile_id": profile_id, "seed": 0})
    asyncio.run(_run_for(own_registry, 0.3))
    found = own_registry.jobs.get(job.id)
    assert (found.state, found.attempts) == ("queued", 0)


def test_a_running_job_is_cancelled(
    own_registry: Registry, known_network: KnownNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BEAT_S", 0.05)
    own_registry.networks.add_space(known_network.base)
    profile_id, _ = own_registry.profiles.upload(known_network.profile)
    job = own_registry.jobs.submit("train", {"profile_id": profile_id, "seed": 0})

    async def run_and_cancel() -> None:
        task = asyncio.create_task(_run_for(own_registry, 10))
        while own_registry.jobs.get(job.id).state == "queued":
            await asyncio.sleep(0.01)
        own_registry.jobs.cancel(job.id)
        while own_registry.jobs.get(job.id).state == "running":
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run_and_cancel())
    assert own_registry.jobs.get(job.id).state == "cancelled"
    assert own_registry.lpnets.all() == []


def test_jobs_need_a_profile_and_its_network(own_registry: Registry, known_network: KnownNetwork) -> None:
    with running(own_registry, ServiceSettings()) as service, service.client() as client:
        with pytest.raises(NotFoundError, match="no profile set 'x'"):
            client.train("x")
        profile_id = client.upload_profile(known_network.profile)
        with pytest.raises(NotFoundError, match=r"has not been uploaded; upload its base\.onnx"):
            client.train(profile_id)


@pytest.mark.long
def test_an_lpnet_is_trained_from_a_stored_profile(
    own_registry: Registry, known_network: KnownNetwork
) -> None:
    own_registry.networks.add_space(known_network.base)
    with (
        running(own_registry, ServiceSettings()) as service,
        ServiceClient(service.url, service.writer) as client,
    ):
        profile_id = client.upload_profile(known_network.profile)
        job = client.train(profile_id, seed=3)
        with pytest.raises(ServiceError, match=f"Job {job.id} is still"):
            client.wait(job.id, timeout_s=0.0)
        done = client.wait(job.id, timeout_s=120)
        assert (done.state, done.error) == ("succeeded", None)
        assert done.result is not None
        assert done.result["held_out_mape"] < 0.05
        predictor = client.predictor(done.result["lpnet"])
        full = known_network.space.full_widths
        assert predictor.predict_ms(full)[0] == pytest.approx(predictor.manifest.reference_ms, rel=0.05)
