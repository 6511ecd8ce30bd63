from dataclasses import replace

import pytest

from latency.candidate import candidate_model, first_channels
from latency.device import DeviceSettings
from latency.errors import ModelFileError
from latency.measure import PairedMeasurement, Protocol
from latency.sessions import SessionPlan, measure_sessions, measure_together, pooled
from latency.space import SearchSpace

MEASUREMENT = PairedMeasurement(
    ratio=0.5,
    ratio_ci=(0.49, 0.51),
    candidate_ms=1.0,
    reference_ms=2.0,
    candidate_p90_ms=1.1,
    reference_p90_ms=2.2,
    n_pairs=20,
    n_preempted=1,
    converged=True,
    timed_s=0.06,
    ratios=tuple(0.49 + 0.001 * step for step in range(20)),
    candidate_samples_ms=(1.0,) * 20,
    reference_samples_ms=(2.0,) * 21,
)


def test_sessions_are_pooled_pair_by_pair() -> None:
    result = pooled([MEASUREMENT, MEASUREMENT])

    assert result.n_pairs == 40
    assert result.n_preempted == 2
    assert result.ratio == pytest.approx(0.4995)
    assert len(result.reference_samples_ms) == 42
    assert result.timed_s == pytest.approx(0.12)


def test_the_interval_covers_what_the_sessions_differ_by() -> None:
    slower = replace(MEASUREMENT, ratio=0.56, ratios=tuple(0.55 + 0.001 * step for step in range(20)))

    result = pooled([MEASUREMENT, slower, MEASUREMENT])

    low, high = result.ratio_ci
    assert low <= 0.5
    assert high >= 0.56


def test_one_session_that_did_not_converge_is_not_hidden() -> None:
    assert not pooled([MEASUREMENT, replace(MEASUREMENT, converged=False)]).converged


def test_sessions_are_processes_of_their_own_with_pauses_between(
    residual_space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("latency.sessions.time.sleep", pauses.append)
    whole = residual_space.model.SerializeToString()
    half = candidate_model(residual_space, first_channels([4, 6])).SerializeToString()
    plan = SessionPlan(3, 1.5, Protocol(min_pairs=6, max_pairs=6))

    found = measure_sessions(half, whole, DeviceSettings(), plan, title="measuring")

    assert pauses == [1.5, 1.5]
    assert found.n_pairs == 18
    assert 0.1 < found.ratio < 2.0


def test_a_file_that_is_no_network_is_named(residual_space: SearchSpace) -> None:
    plan = SessionPlan(1, 0.0, Protocol(min_pairs=6, max_pairs=6))
    with pytest.raises(ModelFileError, match="ONNX Runtime cannot read the model"):
        measure_sessions(b"no network", b"", DeviceSettings(), plan, title="measuring")


def test_networks_measured_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[bytes] = []

    def visit(candidate: bytes, *_: object) -> PairedMeasurement:
        visited.append(candidate)
        return replace(MEASUREMENT, candidate_ms=float(len(visited)))

    monkeypatch.setattr("latency.sessions._in_new_process", visit)

    first, second, third = measure_together(
        [b"a", b"b", b"c"], b"r", DeviceSettings(), SessionPlan(2, 0.0, Protocol()), title="measuring"
    )

    assert b"".join(visited) == b"abccba"
    assert [m.candidate_ms for m in (first, second, third)] == [3.5, 3.5, 3.5]
    assert first.n_pairs == 40
