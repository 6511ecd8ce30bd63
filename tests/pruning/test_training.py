import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import DivergenceError, SettingError
from pruning.precision import FORMATS, Precision
from pruning.training import (
    TrainingConfig,
    accuracy,
    distillation_loss,
    make_optimiser,
    train,
)
from tests.small_training import (
    CONFIG,
    N_CLASSES,
    Pull,
    assert_same_state,
    coloured_task,
    small_net,
    state_of,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing is another module's matter; what it chose may differ from run to run."""
    monkeypatch.setattr(
        "pruning.training.choose_precision", lambda network, images: (Precision(), {"fp32": 1.0})
    )


def test_a_network_learns() -> None:
    network, task = small_net(), coloured_task()
    before = accuracy(network, task)
    history = train(network, task, CONFIG)
    assert [row.epoch for row in history.rows] == [1, 2, 3, 4]
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    assert history.rows[-1].test_accuracy == accuracy(network, task) > max(before, 0.9)
    assert not network.training
    assert json.loads(json.dumps(history.to_json()))[0]["epoch"] == 1


def test_accuracy_is_the_share_classified_rightly() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot(torch.zeros(len(images), dtype=torch.int64), N_CLASSES).float()

    assert accuracy(First(), coloured_task()) == pytest.approx(1 / N_CLASSES)


def test_the_same_seed_gives_the_same_network() -> None:
    first, second, other = small_net(), small_net(), small_net()
    train(first, coloured_task(), CONFIG)
    train(second, coloured_task(), CONFIG)
    train(other, coloured_task(), replace(CONFIG, seed=1))
    assert_same_state(second, state_of(first))
    assert not torch.equal(other.state_dict()["0.weight"], first.state_dict()["0.weight"])


def test_a_second_training_goes_on_with_other_images_than_the_first() -> None:
    config = replace(CONFIG, warm_up=0.0, falls=False, momentum=0.0)
    at_once, in_parts, seen_again = small_net(), small_net(), small_net()
    train(at_once, coloured_task(), replace(config, epochs=3))
    for network, first_epoch in ((in_parts, 2), (seen_again, 0)):
        train(network, coloured_task(), replace(config, epochs=2))
        train(network, coloured_task(), replace(config, epochs=1, first_epoch=first_epoch))
    assert_same_state(in_parts, state_of(at_once))
    assert not torch.equal(seen_again.state_dict()["0.weight"], at_once.state_dict()["0.weight"])


@pytest.mark.parametrize("precision", FORMATS, ids=lambda precision: precision.name)
def test_every_format_trains_and_leaves_the_usual_layout(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.training.choose_precision", lambda network, images: (precision, {}))
    network, teacher = small_net(), small_net(1)
    history = train(network, coloured_task(), CONFIG, teacher=teacher)
    assert history.precision == precision
    assert history.rows[-1].test_accuracy > 0.8
    for each in (network, teacher):
        assert all(parameter.is_contiguous() for parameter in each.parameters())


# The loss


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(
        DivergenceError, match=r"the loss became (nan|inf) .* lower learning rate than 1e\+30"
    ):
        train(small_net(), coloured_task(), replace(CONFIG, learning_rate=1e30))


def test_distillation_is_the_divergence_from_the_teacher() -> None:
    scores, wanted = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert float(distillation_loss(wanted, wanted, 4.0)) == pytest.approx(0, abs=1e-6)
    soft = F.softmax(wanted / 4, 1)
    expected = (soft * (soft.log() - F.log_softmax(scores / 4, 1))).sum(1).mean() * 16
    torch.testing.assert_close(distillation_loss(scores, wanted, 4.0), expected)


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    class Shifted(nn.Module):
        """Classes moved on by one: agreeing with it is not agreeing with the labels."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, images: Tensor) -> Tensor:
            return self.scale * images.mean((2, 3)).roll(1, 1)

    student, teacher = small_net(), Shifted().train()
    train(student, coloured_task(), replace(CONFIG, epochs=6, distillation=1.0), teacher=teacher)
    assert accuracy(student, coloured_task()) < 0.1
    assert float(teacher.scale.detach()) == 20.0
    assert teacher.scale.grad is None


def test_an_objective_has_parameters_of_its_own_and_sees_the_progress() -> None:
    pull = Pull()
    history = train(small_net(), coloured_task(), replace(CONFIG, epochs=8), objective=pull)
    assert pull.progress == [step / 32 for step in range(32)]
    assert float(pull.value.detach()) == pytest.approx(3, abs=0.1)
    assert history.rows[-1].latency_ms == pytest.approx(3, abs=0.1)


def test_weights_decay_and_biases_norms_and_gates_do_not() -> None:
    network, pull = small_net(), Pull()
    groups = make_optimiser(network, replace(CONFIG, weight_decay=0.3), pull).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert decays[id(parameter)] == (0.3 if name in ("0.weight", "6.weight") else 0.0), name
    assert decays[id(pull.value)] == 0.0
    assert [group["lr"] for group in groups] == [0.1, 0.1, 0.2]


def test_frozen_parameters_stay() -> None:
    network = small_net()
    network[0].requires_grad_(False)
    before = state_of(network)
    train(network, coloured_task(), CONFIG)
    assert torch.equal(network.state_dict()["0.weight"], before["0.weight"])
    assert not torch.equal(network.state_dict()["6.weight"], before["6.weight"])


# Settings


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [TrainingConfig(epochs=1, warm_up=0.2).factor(step / 100) for step in range(101)]
    assert factors[0] > 0
    assert factors[20] == max(factors) == 1
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[60] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)


def test_a_rate_that_does_not_fall_stays_at_its_highest() -> None:
    config = TrainingConfig(epochs=1, warm_up=0.2, falls=False)

    assert config.factor(0.1) == pytest.approx(0.5)
    assert config.factor(0.2) == config.factor(0.6) == config.factor(1.0) == 1


@pytest.mark.parametrize("falls", [True, False])
def test_the_travel_is_how_far_a_steady_gradient_moves_a_parameter(*, falls: bool) -> None:
    config = TrainingConfig(epochs=1, learning_rate=0.3, falls=falls)
    parameter, n_steps = torch.nn.Parameter(torch.zeros(())), 2000
    optimiser = torch.optim.SGD([parameter], lr=0.3, momentum=config.momentum, nesterov=True)

    for step in range(n_steps):
        optimiser.param_groups[0]["lr"] = config.learning_rate * config.factor(step / n_steps)
        parameter.grad = torch.ones(())
        optimiser.step()

    assert -float(parameter.detach()) == pytest.approx(
        config.learning_rate * config.travel(n_steps), rel=0.01
    )


def test_a_training_without_warm_up_starts_at_the_highest_rate() -> None:
    assert TrainingConfig(epochs=1, warm_up=0).factor(0) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": -1},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warm_up": 1.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"distillation": 1.5},
        {"temperature": 0.0},
        {"seed": -1},
    ],
)
def test_settings_that_train_nothing_are_refused(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(SettingError, match=f"the training's {name.replace('_', ' ')} is .*; got "):
        replace(CONFIG, **change)


def test_no_epochs_change_nothing() -> None:
    network = small_net()
    before = state_of(network)
    assert train(network, coloured_task(), replace(CONFIG, epochs=0)).rows == ()
    assert_same_state(network, before)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    train(small_net(), coloured_task(), CONFIG, title="training")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "training: 100%" in captured.err
