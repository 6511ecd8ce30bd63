"""What the OpenAPI schema allows, and what it does not, never makes the service fail."""

import contextlib
import json
import warnings

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.known_network import KnownNetwork
from tests.serving import RunningService

EXAMPLES = 60
"""Requests to each route, with ids that exist and with any."""


@schemathesis.serializer("application/jsonl", "application/zip", "application/x-npy")
def _as_it_is(_: schemathesis.SerializationContext, value: object) -> bytes:
    """Bodies that are files: bytes, or what JSON makes of anything else."""
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


@pytest.mark.long
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_no_request_makes_the_service_fail(
    service: RunningService, known_network: KnownNetwork, mode: schemathesis.GenerationMode
) -> None:
    with service.client() as client:
        known = {
            "structure_hash": known_network.space.structure_hash,
            "profile_id": client.upload_profile(known_network.profile),
            "lpnet_id": client.upload_lpnet(known_network.lpnet_folder).id,
            "digest": client.devices()[0].digest,
        }
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: dict[str, set[int]] = {}
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), use_known=st.booleans())
        def send(case: schemathesis.Case, use_known: bool) -> None:
            if use_known:
                case.path_parameters.update({k: v for k, v in known.items() if k in case.path_parameters})
            answer = case.call(headers={"Authorization": f"Bearer {service.writer}"})
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 501, (answer.status_code, answer.text)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the generator's own
            with contextlib.suppress(Unsatisfiable):  # nothing about it can be wrong
                send()
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert len(statuses) == len(operations) > 20
        assert 200 in statuses["GET /v1/devices"]
    else:
        assert statuses["POST /v1/lpnets/{lpnet_id}/predict"] >= {422}
