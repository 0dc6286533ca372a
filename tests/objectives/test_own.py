"""Losses without a teacher: the label's virtual teacher, the network's own last stage, its own past."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from losses import batch_of, built, number, precise_outputs, random_outputs, reference, total, with_gradient
from torch import Tensor, nn
from torch.nn import functional

from autokd.errors import RecipeError
from autokd.objectives.heads import StageHead
from autokd.objectives.logits import kl_rows
from autokd.objectives.own import BYOT, Past
from autokd.objectives.review import BatchScale
from autokd.protocols import Outputs, Shapes

LABELS = [0, 1, 2, 3, 4, 0]


# ---- tfkd_reg


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("elements", 0.1072903300743685),  # tfkd_reg.mean_over_rows_and_classes
        ("rows", 0.5364516503718426),  # tfkd_reg.mean_over_rows
    ],
)
def test_tfkd_reg_reference_numbers(reduction: str, expected: float) -> None:
    student, teacher, batch = reference()
    objective = built("tfkd_reg", student, teacher, reduction=reduction)
    assert number(objective(student, teacher, batch)["tfkd_reg"]) == pytest.approx(expected, rel=1e-9)
    terms = objective(student.float(), teacher, batch)
    assert number(terms["tfkd_reg"]) == pytest.approx(expected, rel=1e-5)


def test_a_cold_and_certain_virtual_teacher_is_cross_entropy() -> None:
    """tau -> 0 gives a one-hot target."""
    student, teacher, batch = precise_outputs(0), precise_outputs(1), batch_of(LABELS, torch.float64)
    objective = built("tfkd_reg", student, teacher, accuracy=1.0, tau=0.05)
    objective.tau = 1e-3
    ce = number(functional.cross_entropy(student.logits, batch.y))
    assert number(objective(student, teacher, batch)["tfkd_reg"]) == pytest.approx(ce, rel=1e-9)


def test_a_hot_virtual_teacher_is_uniform() -> None:
    student, teacher, _ = reference()
    hot = built("tfkd_reg", student, teacher, tau=100.0)
    hot.tau = 1e9
    said = {number(hot(student, teacher, batch_of(labels))["tfkd_reg"]) for labels in ([0, 1, 2, 3], [4, 4, 4, 4])}
    assert min(said) == pytest.approx(max(said), rel=1e-8)


# ---- heads


@pytest.mark.parametrize(
    ("remaining", "width", "widths"),
    [(0, None, [4]), (0, 9, [4]), (1, 9, [4, 9]), (3, 20, [4, 8, 16, 20]), (3, 6, [4, 6, 6, 6]), (2, None, [4, 4, 4])],
)
def test_heads_have_a_block_for_each_stage_to_come(remaining: int, width: int | None, widths: list[int]) -> None:
    head = StageHead(4, remaining, 5, width)
    convolutions = [part for part in head.modules() if isinstance(part, nn.Conv2d)]
    assert [part.in_channels for part in convolutions[::2]] == widths[:-1]
    assert [part.out_channels for part in convolutions[1::2]] == widths[1:]
    assert all(part.groups == part.in_channels == part.out_channels for part in convolutions[::2])
    for size in ((8, 8), (7, 1), (1, 1)):
        maps = torch.randn(3, 4, *size)
        assert head(maps).shape == (3, 5) and head.pooled(maps).shape == (3, widths[-1])


def test_heads_are_those_of_torchs_own_layers() -> None:
    head, maps = StageHead(3, 1, 5, 6), torch.randn(4, 3, 6, 6)
    depthwise, pointwise, scale, _ = head.blocks[0]
    assert isinstance(scale, BatchScale)
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    y = torch.stack(
        [
            functional.conv2d(maps[:, c : c + 1], depthwise.weight[c : c + 1], stride=2, padding=1)[:, 0]
            for c in range(3)
        ],
        1,
    )
    y = norm(torch.einsum("nchw,dc->ndhw", y, pointwise.weight[:, :, 0, 0])).relu().mean((2, 3))
    torch.testing.assert_close(head.pooled(maps), y)
    torch.testing.assert_close(head(maps), y @ head.linear.weight.T + head.linear.bias)


# ---- byot


def test_byot_by_its_definition() -> None:
    student, teacher, batch = precise_outputs(0), precise_outputs(1), batch_of(LABELS, torch.float64)
    objective = built("byot", student, teacher, alpha=0.3, beta=0.7, temperature=2.0)
    assert isinstance(objective, BYOT) and len(objective.heads) == 2
    p = (student.logits / 2).softmax(1).numpy()
    final, expected = student.stages[2].mean((2, 3)).numpy(), {"ce": 0.0, "response": 0.0, "hint": 0.0}
    for head, stage in zip(objective.heads, student.stages, strict=False):
        logits, feature = head(stage).detach(), head.pooled(stage).detach().numpy()
        log_q = (logits / 2).log_softmax(1).numpy()
        expected["ce"] -= 0.7 * np.mean([float(row[y]) for row, y in zip(logits.log_softmax(1), LABELS, strict=True)])
        expected["response"] += 0.3 * 4 * np.mean((p * (np.log(p) - log_q)).sum(1))
        expected["hint"] += 0.7 * np.mean((feature - final) ** 2)
    terms = objective(student, teacher, batch)
    assert {key: number(term) for key, term in terms.items()} == pytest.approx(expected, rel=1e-9)


def test_byots_deepest_stage_teaches_and_is_not_taught() -> None:
    student, leaves = with_gradient(random_outputs(0))
    terms = built("byot", student, student, alpha=0.5)(student, student, batch_of(LABELS))
    gradients = torch.autograd.grad(total(terms), leaves, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [False, False, True, True, False]


@pytest.mark.parametrize("depth", [0, 1])
def test_byot_needs_a_stage_before_the_last(depth: int) -> None:
    shapes = Shapes(5, 7, ((4, 6, 6),) * depth)
    with pytest.raises(RecipeError, match=rf"'byot' needs stages.*has {depth} stages; use"):
        BYOT().build(shapes, shapes)


# ---- past


class Hooked(nn.Module):
    """A network with statistics, dropout and a hook, such as a tap sets."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
        self.seen = 0
        self.body.register_forward_hook(lambda *_: setattr(self, "seen", self.seen + 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(x)}


def past(network: nn.Module, **fields: float | str) -> Past:
    objective = Past(**fields)  # type: ignore[arg-type]
    objective.build(Shapes(5, 8), Shapes(5, 8))
    objective.adopt(network)
    return objective


def say(objective: Past, logits: Tensor, x: Tensor) -> float:
    rows, outputs = torch.arange(len(x)), Outputs(logits)
    batch = batch_of([0] * len(x))
    return number(objective(outputs, outputs, type(batch)(x, batch.y, rows, 0 * rows, rows))["past"])


def changed(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)


def test_the_past_is_taken_once_at_its_time() -> None:
    torch.manual_seed(0)
    network, x, logits = Hooked(), torch.randn(4, 3), torch.randn(4, 5)
    objective = past(network, after=0.5, temperature=2.0)
    changed(network)
    objective.begin_epoch(network, 0.4)
    assert say(objective, logits, x) == 0
    changed(network)
    objective.begin_epoch(network, 0.5)
    with torch.no_grad():
        then = network.eval()(x)["logits"]
    changed(network)
    objective.begin_epoch(network, 0.75)
    expected = 4 * number(kl_rows(logits, then, 2.0).mean())
    assert say(objective, logits, x) == pytest.approx(expected, rel=1e-6) and expected > 0.01
    assert say(objective, then, x) == pytest.approx(0, abs=1e-6)


def test_from_scratch_the_network_begins_again_once() -> None:
    torch.manual_seed(0)
    network = Hooked()
    initial = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective = past(network, after=0.5, init="scratch")
    changed(network)
    trained = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective.begin_epoch(network, 0.5)
    torch.testing.assert_close(dict(network.state_dict()), initial)
    torch.testing.assert_close(dict(objective.earlier.state_dict()), trained)
    changed(network)
    again = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    objective.begin_epoch(network, 0.75)
    torch.testing.assert_close(dict(network.state_dict()), again)
    torch.testing.assert_close(dict(objective.earlier.state_dict()), trained)


def test_until_there_is_a_past_the_labels_may_count_in_full() -> None:
    """The cross-entropy with the labels, times `alone`; from the copy on, and without `alone`, it is 0."""
    torch.manual_seed(0)
    network, x, logits = Hooked(), torch.randn(4, 3), torch.randn(4, 5)
    objective, rows = past(network, after=0.5, alone=0.75), torch.arange(4)
    batch = batch_of([0, 3, 1, 1])
    batch = type(batch)(x, batch.y, rows, 0 * rows, rows)

    def told(by: Past) -> float:
        return number(by(Outputs(logits), Outputs(logits), batch)["past"])

    expected = 0.75 * torch.nn.functional.cross_entropy(logits, batch.y)
    assert told(objective) == pytest.approx(number(expected)) and told(past(network, after=0.5)) == 0
    plain = past(network, after=0.5)
    for each in (objective, plain):
        each.begin_epoch(network, 0.5)
    assert told(objective) == pytest.approx(told(plain)) and told(plain) > 0


def test_a_training_that_goes_on_late_has_its_past_from_the_checkpoint() -> None:
    network, x, logits = Hooked(), torch.randn(4, 3), torch.randn(4, 5)
    objective = past(network)
    changed(network)
    objective.begin_epoch(network, 0.5)
    again = past(Hooked())
    again.load_state_dict(objective.state_dict())
    again.begin_epoch(Hooked(), 0.75)
    assert say(again, logits, x) == say(objective, logits, x) > 0


def test_the_past_stays_in_eval_mode_learns_nothing_and_hooks_nobody() -> None:
    network, x = Hooked().train(), torch.randn(4, 3)
    objective = past(network)
    objective.begin_epoch(network, 0.9)
    objective.train()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    assert say(objective, torch.zeros(4, 5), x) == say(objective, torch.zeros(4, 5), x), "no dropout"
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert objective.training and not any(part.training for part in objective.earlier.modules())
    assert not any(parameter.requires_grad for parameter in objective.parameters())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert network.seen == 0, "a hook that came along with the copy was called"
    network(x)
    assert network.seen == 1
