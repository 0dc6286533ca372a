"""What a frozen teacher says, smoothed: identities, the reference path graph, and what losses and tapes make of it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, KD, expert, images, order, recipe, segments, taped, weights
from torch import Tensor, nn

import autokd
from autokd.core.device import Setting
from autokd.core.live import LiveTeacher
from autokd.errors import TeacherError
from autokd.protocols import Outputs
from autokd.smoothed import SHIFTS, Blur, Smoothed, diffused, laplacian, shifted
from autokd.students.tap import Tap
from autokd.teacher import Teacher

torch.set_num_threads(1)
X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def told(network: nn.Module, x: Tensor = X) -> Outputs:
    """All that a loss may read."""
    tap = Tap(network.eval(), x[:2])
    with torch.no_grad():
        seen = tap(x)
    tap.close()
    return seen


def smoothed(**knobs: Any) -> Smoothed:
    return Smoothed(expert(), X[:2], **knobs)


def assert_alike(one: Outputs, other: Outputs, but: str = "") -> None:
    for name in ("logits", "embedding", "stages"):
        if name != but:
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def test_without_views_sigma_and_mu_it_says_the_same() -> None:
    assert_alike(told(smoothed(views=1, sigma=0.0, mu=0.0)), told(expert()))


# ---- graph


def test_a_path_of_four_is_smoothed_as_the_reference() -> None:
    i, j = torch.arange(4.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    rows = torch.cos(0.8 * i - 0.6 * j)
    edges = torch.diag(torch.ones(3, dtype=torch.float64), 1)
    path = torch.diag((edges + edges.T).sum(1)) - edges - edges.T
    smooth = diffused(rows, path, 0.5)
    assert float((rows.T @ path @ rows).trace()) == pytest.approx(7.164566892, rel=1e-9)  # purf.graph.energy_before
    assert float((smooth.T @ path @ smooth).trace()) == pytest.approx(3.372815256, rel=1e-9)  # and __after
    torch.testing.assert_close(smooth.mean(0), rows.mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("neighbours", [1, 3, 20])
@pytest.mark.parametrize("mu", [0.01, 1.0, 30.0])
def test_the_graph_keeps_the_mean_and_lowers_the_energy(neighbours: int, mu: float) -> None:
    rows = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = laplacian(rows, neighbours)
    assert torch.equal(graph, graph.T) and torch.equal(graph.sum(1), torch.zeros_like(graph[0]))
    assert float(graph.diag().min()) >= min(neighbours, 11)
    near = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1)
    assert bool((graph[torch.arange(12), near] == -1).all())
    smooth = diffused(rows, graph, mu)
    torch.testing.assert_close(smooth.mean(0), rows.mean(0))
    assert float((smooth.T @ graph @ smooth).trace()) < float((rows.T @ graph @ rows).trace())
    assert torch.equal(diffused(rows, graph, 0.0), rows)


def test_logits_are_those_of_smoothed_embeddings() -> None:
    plain, smooth = told(expert()), told(smoothed(mu=0.7, neighbours=3))
    assert plain.embedding is not None and smooth.embedding is not None
    expected = diffused(plain.embedding, laplacian(plain.embedding, 3), 0.7)
    torch.testing.assert_close(smooth.embedding, expected)
    (head,) = [part for part in expert().modules() if isinstance(part, nn.Linear)]
    torch.testing.assert_close(smooth.logits, head(expected).detach())
    torch.testing.assert_close(smooth.stages, plain.stages, rtol=0, atol=0)
    torch.testing.assert_close(told(smoothed(mu=0.7), X[:1]).logits, told(expert(), X[:1]).logits)


def test_a_network_that_is_one_linear_layer_is_smoothed() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    linear = nn.Linear(4, CLASSES)
    expected = linear(diffused(rows, laplacian(rows, 5), 2.0))
    torch.testing.assert_close(Smoothed(linear, rows[:2], mu=2.0)(rows), expected)


@pytest.mark.parametrize(
    "knobs, repeats", [({"mu": 0.5}, False), ({"mu": 1e-9}, False), ({"views": 3}, True), ({"sigma": 1.0}, True)]
)
def test_what_depends_on_the_batch_is_never_recorded(knobs: dict[str, Any], repeats: bool) -> None:
    live = LiveTeacher(smoothed(**knobs), X[:2], Setting())
    assert live.repeats_itself(X) is repeats
    live.close()


# ---- views


def test_logits_are_the_mean_over_shifts_and_the_rest_is_of_the_rows_themselves() -> None:
    for views in (2, 5, 9):
        expected = torch.stack([told(expert(), shifted(X, *shift)).logits for shift in SHIFTS[:views]]).mean(0)
        found = told(smoothed(views=views))
        torch.testing.assert_close(found.logits, expected)
        assert_alike(found, told(expert()), but="logits")


def test_a_shift_moves_the_inside_and_reflects_the_border() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert len(set(SHIFTS)) == 9 and SHIFTS[0] == (0, 0) and shifted(x, 0, 0) is x
    assert torch.equal(shifted(x, 1, 0)[0, 0, 1:], x[0, 0, :-1]) and torch.equal(shifted(x, 1, 0)[0, 0, 0], x[0, 0, 1])
    assert torch.equal(shifted(x, -1, 1)[0, 0, :2, 1:], x[0, 0, 1:, :-1])


# ---- stage maps


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_losses_see_blurred_maps_and_the_network_its_own(sigma: float) -> None:
    plain, blurred = told(expert()), told(smoothed(sigma=sigma))
    assert_alike(plain, blurred, but="stages")
    assert len(plain.stages) > 1
    torch.testing.assert_close(blurred.stages, tuple(Blur(sigma)(stage) for stage in plain.stages))


def test_a_blur_keeps_constants_and_spreads_a_point_evenly() -> None:
    blur, point = Blur(1.0), torch.zeros(1, 2, 9, 9)
    torch.testing.assert_close(blur(torch.full((2, 3, 2, 2), 7.0)), torch.full((2, 3, 2, 2), 7.0))
    point[0, 0, 4, 4] = 1.0
    spread = blur(point)[0]
    assert float(spread[0].sum()) == pytest.approx(1.0) and not bool(spread[1].any())
    torch.testing.assert_close(spread[0], spread[0].T)
    assert float(spread[0, 4, 4] / spread[0, 4, 5]) == pytest.approx(2.718281828**0.5)


class Named(nn.Module):
    """Names its stages itself, one of them within another."""

    stage_names = ("body.0", "body")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, 2))
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(x).mean((2, 3)))}


def test_stages_that_a_network_names_itself_stay_the_stages() -> None:
    torch.manual_seed(0)
    network = Named()
    plain = told(network)
    assert [stage.shape[1] for stage in plain.stages] == [4, 5]
    kept = told(Smoothed(network, X[:2], views=2))
    torch.testing.assert_close(kept.stages[1], plain.stages[1])
    blurred = told(Smoothed(network, X[:2], sigma=0.5))
    assert [stage.shape for stage in blurred.stages] == [stage.shape for stage in plain.stages]
    torch.testing.assert_close(blurred.stages[1], Blur(0.5)(plain.stages[1]))
    torch.testing.assert_close(blurred.logits, plain.logits, rtol=0, atol=0)


# ---- as a teacher


def test_all_of_it_makes_a_teacher_and_leaves_the_network_alone() -> None:
    network, data = expert(), images(60)
    before, knobs = (
        weights(network),
        [{}, {"views": 2}, {"views": 3}, {"mu": 0.5}, {"mu": 0.5, "neighbours": 3}, {"sigma": 1}],
    )
    teachers = [Teacher(autokd.Smoothed(network, X[:2], **each), data) for each in knobs]  # type: ignore[arg-type]
    assert len({each.fingerprint for each in teachers}) == len(knobs)
    assert all(each.value > 0.6 for each in teachers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    together = Smoothed(network, X[:2], views=2, mu=0.5, sigma=1.0).eval()
    for twin in (copy.deepcopy(together), pickle.loads(pickle.dumps(together))):
        torch.testing.assert_close(told(twin).logits, told(together).logits)


@pytest.mark.parametrize(("knobs", "recorded"), [({"mu": 0.5}, False), ({"views": 2, "sigma": 0.7}, True)])
def test_students_learn_from_it_live_or_from_a_tape(tmp_path: Path, knobs: dict[str, Any], recorded: bool) -> None:
    teacher = Smoothed(expert(), X[:2], **knobs)
    its_core = taped(tmp_path, tmp_path / "tape", teacher=teacher)
    both = recipe(terms=(KD, {"objective": "at", "weight": 100.0}))
    report = its_core.advance(order(both))
    assert report.history[0]["terms"]["kd"] > 0 and report.history[0]["terms"]["at"] > 0
    assert bool(segments(tmp_path / "tape") if recorded else its_core.teaching.notes)  # type: ignore[union-attr]
    assert recorded or not list((tmp_path / "tape").rglob("*.safetensors"))
    its_core.close()


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"views": 0}, "views must be from 1 to 9, got 0"),
        ({"views": 10}, "views must be from 1 to 9"),
        ({"sigma": -0.1}, "sigma must be 0 or more"),
        ({"mu": float("inf")}, "mu must be 0 or more"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        smoothed(**knobs)


def test_what_a_network_does_not_have_cannot_be_smoothed() -> None:
    vectors = torch.rand(2, 64)
    with pytest.raises(TeacherError, match="views are shifted images"):
        Smoothed(nn.Linear(64, 3), vectors, views=2)
    with pytest.raises(TeacherError, match="sigma blurs stage maps, and the teacher has none"):
        Smoothed(nn.Linear(64, 3), vectors, sigma=1.0)
    with pytest.raises(TeacherError, match="and there is none"):
        Smoothed(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), X[:2], mu=1.0)
