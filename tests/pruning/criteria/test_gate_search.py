"""The search on a small net with known prices: it must hold the target and prefer what the task needs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from latency.grid import Grid
from latency.space import SearchSpace
from latency.structure import IntArray
from pruning.budget import Choice, FloatArray, cut_with_shift, smallest_widths
from pruning.criteria.base import Method, SearchJob
from pruning.criteria.gate_search import BudgetObjective, gate_worth, limit_gradients_
from pruning.criteria.scaling_factors import ScalingFactors, ScalingFactorsMethod
from pruning.criteria.wgates import WGates, WGatesMethod
from pruning.data import ImageTask
from pruning.errors import BudgetError, CheckpointError
from pruning.gates import GatedNetwork
from pruning.objective import BudgetSchedule, HeldBudget
from pruning.remembered import Loss
from pruning.removal_order import distillation_rise
from pruning.sensitivity import gate_costs
from pruning.trace import trace
from pruning.training import TrainingConfig, train
from tests.conftest import SmallResidualNet

ANY_WIDTH = Grid((tuple(range(1, 13)),))


class DigitsNet(nn.Module):
    """Twelve filters of which the classifier reads six: the rest cost time and give nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(images))).flatten(1))


def held_term(space: SearchSpace, fixed_ms: float, schedule: BudgetSchedule, epochs: int) -> HeldBudget:
    """Every channel costs 0.1 ms, the rest of the network `fixed_ms`."""

    def price(rows: npt.ArrayLike) -> FloatArray:
        return fixed_ms + 0.1 * np.sum(rows, axis=1, dtype=np.float64)

    def cut(scores: FloatArray, target_ms: float) -> tuple[Choice, float]:
        return cut_with_shift(scores, space, ANY_WIDTH, price, target_ms)

    return HeldBudget(lambda widths: fixed_ms + 0.1 * widths.sum(dim=1), cut, schedule, epochs)


@pytest.fixture(scope="module")
def searched(task: ImageTask) -> tuple[GatedNetwork, list[float | None], SearchSpace]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DigitsNet()
    train(network, task, TrainingConfig(epochs=2))
    useful = torch.arange(12) < 6
    with torch.no_grad():
        network.head.weight.view(10, 12, 64)[:, ~useful] = 0  # nobody reads these
    space = trace(network, (1, 3, 16, 16))
    gated = GatedNetwork(network, space, WGates(network, space), ANY_WIDTH)
    term = held_term(space, 0.1, BudgetSchedule(1.3, 0.75), epochs=3)
    history = train(
        gated,
        task,
        TrainingConfig(epochs=3, learning_rate=0.01),
        objective=BudgetObjective(gated, gated.gates, term, gate_lr=0.1),
    )
    return gated, [row.latency_ms for row in history.rows], space


def test_the_predicted_latency_ends_at_the_target(
    searched: tuple[GatedNetwork, list[float | None], SearchSpace],
) -> None:
    _, latencies_ms, _ = searched

    assert latencies_ms[-1] == pytest.approx(0.7)  # 0.75 ms are not to be had


def test_the_filters_that_the_task_needs_stay(
    searched: tuple[GatedNetwork, list[float | None], SearchSpace],
) -> None:
    gated, _, _ = searched

    assert gated.held_open.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_the_network_still_works_with_its_gates(
    searched: tuple[GatedNetwork, list[float | None], SearchSpace], task: ImageTask
) -> None:
    gated, _, _ = searched
    images, labels = next(iter(task.test_batches()))

    with torch.no_grad():
        right = (gated.eval()(images).argmax(dim=1) == labels).float().mean().item()

    assert right > 0.8


def test_the_gates_state_is_part_of_the_networks(
    searched: tuple[GatedNetwork, list[float | None], SearchSpace],
) -> None:
    gated, _, _ = searched

    names = set(gated.state_dict())

    assert {"gates.bias", "gates.scale", "network.conv.weight"} <= names


def test_an_interrupted_search_ends_as_an_uninterrupted_one(task: ImageTask, tmp_path: Path) -> None:
    def search(epochs_before_the_interruption: int | None) -> np.ndarray:
        checkpoint = tmp_path / f"{epochs_before_the_interruption}.safetensors"
        for stop in (epochs_before_the_interruption, None):
            torch.manual_seed(1)  # each time as a new process begins
            network = DigitsNet()
            space = trace(network, (1, 3, 16, 16))
            gated = GatedNetwork(network, space, WGates(network, space), ANY_WIDTH)
            term = held_term(space, 0.0, BudgetSchedule(1.2, 0.6), epochs=3)
            objective = _Stopping(gated, term, 0.1, stop)
            try:
                train(gated, task, TrainingConfig(epochs=3), objective=objective, checkpoint=checkpoint)
            except KeyboardInterrupt:
                continue
            break
        return gated.gates.scores(dict(network.named_parameters())).detach().numpy()

    np.testing.assert_allclose(search(2), search(None), rtol=1e-5, atol=1e-6)


class _Stopping(BudgetObjective):
    """Interrupts the search once so many epochs are done."""

    def __init__(self, gated: GatedNetwork, term: HeldBudget, gate_lr: float, stop: int | None) -> None:
        super().__init__(gated, gated.gates, term, gate_lr)
        object.__setattr__(self, "_stop", stop)

    __slots__ = ("_stop",)

    def penalty(self, progress: float) -> Tensor:
        if self._stop is not None and progress >= self._stop / 3:
            raise KeyboardInterrupt
        return super().penalty(progress)


def test_a_resumed_search_starts_from_the_same_worth(
    make_job: Callable[..., SearchJob], tmp_path: Path
) -> None:
    job = make_job(checkpoint=tmp_path / "state-0.safetensors")
    first = job.stored("worth", lambda: torch.arange(3.0))

    again = job.stored("worth", lambda: torch.zeros(3))

    assert torch.equal(again, first)
    assert list(tmp_path.glob("state-*.safetensors"))  # dropped with the search's own state


@pytest.mark.parametrize("method", [WGatesMethod(), ScalingFactorsMethod()])
def test_a_search_ends_at_the_latency_that_was_measured_before_it(
    make_job: Callable[..., SearchJob], method: Method
) -> None:
    asked: list[FloatArray] = []

    def measured_target(scores: FloatArray) -> float:
        asked.append(scores)
        return 0.55 * reference_ms

    job = make_job(budget_share=0.6)
    reference_ms = job.device.profile.reference_ms

    found = method.search(dataclasses.replace(job, measured_target=measured_target))

    assert [scores.shape for scores in asked] == [(job.n_slots,)]
    assert found.target_ms == pytest.approx(0.55 * reference_ms, rel=1e-5)
    assert found.history.rows[-1].latency_ms == pytest.approx(0.55 * reference_ms, rel=0.1)
    assert found.history.rows[-1].latency_ms <= found.target_ms


def test_a_budget_that_no_cut_meets_costs_no_training(make_job: Callable[..., SearchJob]) -> None:
    def measured_target(scores: FloatArray) -> float:
        del scores
        raise BudgetError("none is within")

    job = dataclasses.replace(make_job(), measured_target=measured_target)
    before = job.parameters()

    with pytest.raises(BudgetError, match="none is within"):
        WGatesMethod().search(job)

    assert all(torch.equal(value, before[name]) for name, value in job.parameters().items())


def test_without_epochs_the_network_is_cut_where_the_gates_start(
    make_job: Callable[..., SearchJob], tmp_path: Path
) -> None:
    job = make_job(epochs=0, checkpoint=tmp_path / "state-0.safetensors")
    before = job.parameters()

    found = WGatesMethod().search(job)

    worth = job.stored("worth", lambda: torch.zeros(job.n_slots))
    assert found.history.rows == ()
    assert np.array_equal(np.argsort(found.scores), np.argsort(worth.numpy()))
    assert all(torch.equal(value, before[name]) for name, value in job.parameters().items())


def test_a_resumed_search_ends_at_the_same_latency(
    make_job: Callable[..., SearchJob], tmp_path: Path
) -> None:
    job = make_job(checkpoint=tmp_path / "state-0.safetensors")
    scores = np.zeros(job.n_slots)
    first = dataclasses.replace(job, measured_target=lambda _: 0.3).target_ms(scores)

    again = dataclasses.replace(job, measured_target=lambda _: 0.4).target_ms(scores)

    assert first == again == pytest.approx(max(0.3, least_ms(job)), rel=1e-5)


def least_ms(job: SearchJob) -> float:
    smallest = smallest_widths(job.space, job.device.grid)
    return float(job.device.predict_ms(job.budget_ms)([smallest])[0])


def test_no_target_is_below_what_the_smallest_network_is_predicted_to_take(
    make_job: Callable[..., SearchJob],
) -> None:
    job = make_job()
    below = dataclasses.replace(job, measured_target=lambda _: 0.5 * least_ms(job))

    target_ms = below.target_ms(np.zeros(job.n_slots))

    assert least_ms(job) < target_ms < 1.001 * least_ms(job)


def test_another_measured_target_is_another_training(
    make_job: Callable[..., SearchJob], tmp_path: Path
) -> None:
    job = make_job(epochs=1, checkpoint=tmp_path / "state-0.safetensors")
    full_ms = job.device.profile.reference_ms
    WGatesMethod().search(dataclasses.replace(job, measured_target=lambda _: 0.6 * full_ms))
    (target,) = tmp_path.glob("*-target.safetensors")
    target.unlink()
    fresh = make_job(epochs=1, checkpoint=job.checkpoint)

    with pytest.raises(CheckpointError, match="belongs to another training, with identity"):
        WGatesMethod().search(dataclasses.replace(fresh, measured_target=lambda _: 0.7 * full_ms))


@pytest.mark.parametrize("kind", ["wgates", "scaling-factors"])
def test_gates_on_a_gpu_start_from_a_worth_on_the_cpu(residual_space: SearchSpace, kind: str) -> None:
    # Tensors that have a device, but no values: none of this needs a GPU.
    with FakeTensorMode(), torch.device("cuda"):
        network = SmallResidualNet()
        gates = WGates(network, residual_space) if kind == "wgates" else ScalingFactors(residual_space)
        parameters = dict(network.named_parameters())
        gates.start_from(torch.zeros(20, dtype=torch.float64, device="cpu"), parameters)
        scores = gates.scores(parameters)

    assert scores.device.type == "cuda"
    assert scores.shape == (20,)


def test_an_interrupted_order_and_another_budget_find_the_losses_again(
    make_job: Callable[..., SearchJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_computed = 0

    def counted(*arguments: Any, **named: Any) -> Loss:
        rise = distillation_rise(*arguments, **named)

        def one(widths: IntArray) -> float:
            nonlocal n_computed
            n_computed += 1
            if n_computed == 4:
                raise KeyboardInterrupt
            return rise(widths)

        return one

    def worth(budget_share: float, checkpoint: Path | None) -> Tensor:
        job = make_job(budget_share=budget_share, checkpoint=checkpoint)
        gates = WGates(job.network, job.space)
        return gate_worth(GatedNetwork(job.network, job.space, gates, job.device.grid), job)

    alone = worth(0.6, None)
    costs = Mock(side_effect=gate_costs)  # a GPU's would differ from run to run
    monkeypatch.setattr("pruning.criteria.gate_search.gate_costs", costs)
    monkeypatch.setattr("pruning.criteria.gate_search.distillation_rise", counted)

    with pytest.raises(KeyboardInterrupt):
        worth(0.6, tmp_path / "state-0.safetensors")
    torch.testing.assert_close(worth(0.6, tmp_path / "state-0.safetensors"), alone, rtol=0, atol=0)
    n_lines = sum(len(file.read_text().splitlines()) for file in tmp_path.glob("rises-*.jsonl"))
    assert n_computed == n_lines + 1  # the interrupted one
    n_before = n_computed
    worth(0.7, tmp_path / "state-1.safetensors")  # ends earlier on the same way

    assert n_computed == n_before
    costs.assert_called_once()


def test_no_group_is_pulled_much_faster_than_the_others() -> None:
    torch.manual_seed(0)
    network = DigitsNet()
    gates = WGates(network, trace(network, (1, 3, 16, 16)))
    gates.bias = nn.Parameter(torch.zeros(4))
    limit_gradients_(gates)

    (gates.bias * torch.tensor([1.0, 10.0, -1000.0, 0.0])).sum().backward()

    assert gates.bias.grad is not None
    assert gates.bias.grad.abs().max() < 1
    assert gates.bias.grad.sign().tolist() == [1, 1, -1, 0]
