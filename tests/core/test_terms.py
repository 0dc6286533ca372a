"""What a recipe says about its terms besides the losses: schedules, units of weights, rows of the cross-entropy, what losses may ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_resuming import assert_equal, trained
from tiny import KD, core, expert, images, order, passes_of, recipe, taped
from torch import Tensor
from torch.nn import functional

from autokd.augment.views import make_view
from autokd.core import checkpoint
from autokd.core.core import TrainingCore
from autokd.core.device import Setting
from autokd.core.loop import MEASURED
from autokd.core.run import Run
from autokd.core.step import cross_entropy
from autokd.errors import RecipeError, TrialFailure
from autokd.objectives import name_of
from autokd.protocols import Ask, Batch, Objective, Outputs, Samples
from autokd.recipe import Recipe, TermSpec

STUDENT = {"family": "resnet", "width": 4}


# ---- schedules


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"schedule": "linear", "share": 0.5}, [0, 0.5, 1, 1, 1]),
        ({"schedule": "linear", "share": 0.0}, [1, 1, 1, 1, 1]),
        ({"schedule": "decay"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "decay", "share": 0.75}, [1, 2 / 3, 1 / 3, 0, 0]),  # the adversarial term of BSS, in units of 2
        (
            {"schedule": "decay", "floor": 0.25},
            [1, 0.8125, 0.625, 0.4375, 0.25],
        ),  # its clean term: 4, 3.25, 2.5, 1.75, 1
        ({"schedule": "off", "share": 0.5}, [1, 1, 0, 0, 0]),
        ({"schedule": "off", "share": 0.75, "floor": 0.1}, [1, 1, 1, 0.1, 0.1]),
        ({"schedule": "sigmoid", "share": 0.5}, [math.exp(-5), math.exp(-5 / 4), 1, 1, 1]),
    ],
)
def test_factors_of_a_weight_over_the_training(fields: dict[str, Any], factors: list[float]) -> None:
    term = TermSpec(objective="kd", weight=1.0, **fields)
    assert [term.factor(quarter / 4) for quarter in range(5)] == pytest.approx(factors, abs=1e-12)


def test_what_has_no_effect_does_not_tell_recipes_apart() -> None:
    plain = TermSpec(objective="kd", weight=1.0)
    assert TermSpec(objective="kd", weight=1.0, schedule="constant", share=0.3, floor=0.5) == plain
    rising = TermSpec(objective="kd", weight=1.0, schedule="linear", share=0.3)
    assert TermSpec(objective="kd", weight=1.0, schedule="linear", share=0.3, floor=0.5) == rising
    assert (
        rising.warm_at == 0.3 and plain.warm_at == 0 == TermSpec(objective="kd", weight=1.0, schedule="decay").warm_at
    )


@pytest.mark.parametrize("schedule", ["decay", "off"])
def test_a_term_that_has_ended_teaches_nothing(tmp_path: Path, schedule: str) -> None:
    kd = {**KD, "schedule": schedule, "share": 1 / 3}
    report = core(tmp_path).advance(order(recipe(terms=(kd,)), to=2, total=3))
    assert report.history[0]["terms"]["kd"] > 0.01 and report.history[1]["terms"]["kd"] == 0


# ---- units of weights


def run_of(folder: Path, of: Recipe) -> tuple[TrainingCore, Run]:
    its_core = core(folder)
    its_core.advance(order(of, to=1))
    tensors, meta = checkpoint.load(its_core.checkpoint_path("t"))
    run = its_core.new(of, 0, Setting())
    run.restore(tensors, meta)
    return its_core, run


def test_weights_may_count_in_units_of_the_loss_before_training(tmp_path: Path) -> None:
    """A term of weight w begins as w, whatever the size of its loss; a learning rate of next to nothing keeps it there."""
    terms = (
        {"objective": "kd", "weight": 0.5},
        {"objective": "at", "weight": 0.25},
        {"objective": "rkd", "weight": 0.25},
    )
    of = recipe(terms=terms, term_scale="initial", optim={"lr": 1e-9}, peers={"count": 1, "weight": 0.0})
    its_core, run = run_of(tmp_path, of)
    log = run.history[0]["terms"]
    assert run.step.scales is not None and run.step.scales.units.shape == (2, 3)
    first = log["at"], log["kd"], log["rkd.distance"] + log["rkd.angle"]
    assert first == pytest.approx((0.25, 0.5, 0.25), rel=0.25)  # batches differ
    plain = core(tmp_path / "own").advance(order(recipe(terms=terms, optim={"lr": 1e-9}))).history[0]["terms"]
    assert plain["at"] < 0.2 * log["at"]  # of a weight of 0.25 as well
    run.close()
    its_core.close()


def test_measuring_the_terms_changes_nothing_else(tmp_path: Path) -> None:
    """Statistics of batch norm and the noise of a training are those of one that was not measured."""
    for scale in ("own", "initial"):
        run_of(tmp_path / scale, recipe(terms=({**KD, "weight": 1e-30},), term_scale=scale))
    (own, _), (measured, _) = (checkpoint.load(tmp_path / scale / "t.safetensors") for scale in ("own", "initial"))
    students = [{k: t for k, t in tensors.items() if k.startswith("parts.0.")} for tensors in (own, measured)]
    assert all(torch.equal(tensor, students[1][key]) for key, tensor in students[0].items())
    assert [key for key in measured if key not in own] == ["parts.2.units"]


def test_a_term_that_begins_at_nothing_is_not_blown_up(tmp_path: Path) -> None:
    _, run = run_of(tmp_path, recipe(terms=({"objective": name_of(Silent), "weight": 1.0},), term_scale="initial"))
    assert run.step.scales is not None and float(run.step.scales.units) == 1.0


def test_a_loss_that_says_little_before_training_keeps_its_unit(tmp_path: Path) -> None:
    """Its batches have a loss, if a small one; the weight of the loss beside it counts in that one's units."""
    terms = ({"objective": "amkd", "weight": 1.0}, {**KD, "weight": 1.0})
    its_core, run = run_of(tmp_path, recipe(terms=terms, term_scale="initial"))
    assert run.step.scales is not None
    amkd, kd = run.step.scales.units[0].tolist()
    assert amkd == 1.0 != kd
    run.close()
    its_core.close()


def test_units_are_medians_of_the_first_batches(tmp_path: Path) -> None:
    Counted.losses.clear()
    _, run = run_of(tmp_path, recipe(terms=({"objective": name_of(Counted), "weight": 1.0},), term_scale="initial"))
    assert run.step.scales is not None and MEASURED == 3
    assert float(run.step.scales.units) == pytest.approx(sorted(Counted.losses[:3])[1])


def test_a_resumed_trial_keeps_its_units(tmp_path: Path) -> None:
    of = recipe(terms=(KD, {"objective": "at", "weight": 0.3}), term_scale="initial")
    trained(tmp_path / "paused", of, 1, 2)
    trained(tmp_path / "whole", of, 2)
    assert_equal(tmp_path / "paused", tmp_path / "whole")


# ---- cross-entropy


def supervised(folder: Path, **more: Any) -> float:
    """The cross-entropy of an epoch at a learning rate of next to nothing."""
    report = core(folder).advance(order(recipe(optim={"lr": 1e-9}, **more)))
    return float(report.history[0]["terms"]["ce"])


def test_cross_entropy_of_original_rows_leaves_the_others_out(tmp_path: Path) -> None:
    logits, y, view = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 0, 2, 0, 1])
    rows, task = torch.arange(6), core(tmp_path).task
    batch = Batch(torch.zeros(6, 1), y, rows, view, rows)
    own = view == 0
    expected = functional.cross_entropy(logits[own], y[own], label_smoothing=0.1)
    found = cross_entropy(recipe(ce_rows="original"), task, Outputs(logits), batch, 0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    every = cross_entropy(recipe(), task, Outputs(logits), batch, 0.0)
    assert float(every) == pytest.approx(float(functional.cross_entropy(logits, y)), rel=1e-6)
    views = {"policy": "jda", "rho": 0.5, "p": 1.0}
    assert supervised(tmp_path / "a", augment=views) != supervised(tmp_path / "b", augment=views, ce_rows="original")


def test_smoothed_labels_are_those_of_torch(tmp_path: Path) -> None:
    its_core = core(tmp_path)
    logits, y = torch.randn(12, 3), torch.arange(12) % 3
    rows = torch.arange(12)
    batch = Batch(torch.zeros(12, 1), y, rows, torch.zeros_like(rows), rows)
    for smoothing in (0.0, 0.1, 0.5):
        expected = functional.cross_entropy(logits, y, label_smoothing=smoothing)
        assert float(its_core.task.loss(Outputs(logits), batch, None, smoothing)) == pytest.approx(
            float(expected), rel=1e-6
        )
    assert supervised(tmp_path / "smooth", label_smoothing=0.3) != supervised(tmp_path / "hard")


# ---- what losses may ask


class Silent(Objective):
    """Always nothing."""

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"silent": 0 * student.logits.square().mean()}


class Counted(Objective):
    """Remembers what it said."""

    losses: ClassVar[list[float]] = []

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        loss = (student.logits - teacher.logits).square().mean()
        Counted.losses.append(float(loss.detach()))
        return {"counted": loss}


class Curious(Objective):
    """Asks for everything there is, and keeps it."""

    asks: ClassVar[bool] = True
    listens: ClassVar[bool] = False
    heard: ClassVar[dict[str, Any]] = {}
    samples: Samples

    def know(self, samples: Samples) -> None:
        self.samples = samples

    def forward(  # type: ignore[override]
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None, ask: Ask
    ) -> dict[str, Tensor]:
        other = (batch.index + 1) % len(self.samples)
        x = ask.base(other)
        logits, slope = ask.slope(x, lambda logits: logits[:, 0].sum())
        Curious.heard |= {
            "x": x,
            "other": other,
            "student": ask.student(x),
            "teacher": ask.teacher(x),
            "logits": logits,
            "slope": slope,
            "random": ask.uniform(7, batch.index),
        }
        return {"curious": (Curious.heard["student"].logits - Curious.heard["teacher"].logits).square().mean()}


CURIOUS: Mapping[str, Any] = {"objective": name_of(Curious), "weight": 0.1}


def test_a_loss_that_asks_is_answered(tmp_path: Path) -> None:
    its_core = core(tmp_path, images(60), expert())
    its_core.advance(order(recipe(terms=(dict(CURIOUS),)), to=1))
    heard, data = Curious.heard, its_core.rows.data
    raw = torch.tensor(data.train.x[heard["other"].numpy()])
    augment = recipe().augment
    assert torch.equal(heard["x"], make_view(raw, heard["other"], 0, augment, 0, 0, data.pad, data.flip, (0.0, 1.0)).x)
    assert its_core.teaching is not None
    teacher = its_core.teaching.live.module
    x = heard["x"].clone().requires_grad_()
    logits = teacher(x)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x)
    torch.testing.assert_close(heard["teacher"].logits, logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heard["logits"], logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heard["slope"], slope, rtol=1e-3, atol=1e-5)
    assert heard["student"].logits.requires_grad and not heard["teacher"].logits.requires_grad
    assert 0 <= float(heard["random"].min()) < float(heard["random"].max()) < 1


def test_a_loss_that_does_not_listen_needs_no_pass_of_the_teacher(tmp_path: Path) -> None:
    its_core = taped(tmp_path / "run", tmp_path / "tape")
    rows = passes_of(its_core)
    its_core.advance(order(recipe(terms=({"objective": name_of(Deaf), "weight": 0.1},))))
    assert rows == []


class Deaf(Objective):
    """Learns from the network itself, built for it alone."""

    listens: ClassVar[bool] = False

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, row_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        return {"deaf": student.logits.square().mean()}


def test_without_a_teacher_only_losses_that_listen_fail(tmp_path: Path) -> None:
    alone = TrainingCore(images(), None, tmp_path, Setting())
    assert alone.advance(order(recipe(terms=({"objective": name_of(Deaf), "weight": 0.1},)))).epoch == 1
    for term in (KD, dict(CURIOUS)):
        with pytest.raises(TrialFailure, match="pass one"):
            alone.advance(order(recipe(terms=(term,))))


def test_a_run_of_its_own_has_nobody_to_ask() -> None:
    data = images()
    with pytest.raises(RecipeError, match="only a training core has"):
        Run(recipe(terms=(dict(CURIOUS),)), 0, data, core(Path()).task, None, torch.rand(2, 1, 8, 8), Setting())
