"""Scores of untrained students: the formulas against longer ways to the same numbers, and the judging against enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional

from autokd.recipe import StudentSpec
from benchmarks.core.images import as_data, choose, load
from benchmarks.search import training_free
from benchmarks.search.training_free_cases import Case, Known, build, measure
from benchmarks.search.training_free_scores import look, own, similarities

SPECS = tuple(
    StudentSpec.model_validate(spec)
    for spec in (
        {"family": "resnet", "width": 4, "depth1": 1, "depth2": 1, "depth3": 0},
        {"family": "plain", "width": 8, "depth1": 1, "depth2": 0, "depth3": 1},
        {"family": "mlp", "depth": 2, "width": 16},
        {"family": "mlp", "depth": 0},
    )
)
TEACHER = {"width": 8, "depth1": 1, "depth2": 1, "depth3": 1}


@pytest.fixture(scope="module")
def case() -> Case:
    data = as_data(load(choose("digits", 200)))
    trained = build(StudentSpec.model_validate({"family": "resnet", **TEACHER}), data, 99)
    return Case("digits", data, SPECS, TEACHER, trained)


@pytest.fixture(scope="module")
def batch(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(case.data.train.x[:64]).float() / 255, torch.tensor(case.data.train.y[:64]).long()


def test_a_network_is_most_like_itself(case: Case, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = (look(build(SPECS[0], case.data, seed), *batch) for seed in (0, 1))
    assert similarities(one, one) == pytest.approx({"relation": 0, "semantic": 0, "channels": 0, "diswot": 0}, abs=1e-6)
    assert all(-4 <= score < -0.001 for name, score in similarities(one, other).items())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.family)
def test_the_classifier_s_gradient_is_the_one_of_autograd(
    case: Case, batch: tuple[torch.Tensor, torch.Tensor], spec: StudentSpec
) -> None:
    network = build(spec, case.data, 0)
    seen = look(network, *batch)
    torch.testing.assert_close(seen.gradient, network.head.weight.grad)
    assert own(network, seen)["gradient"] >= float(network.head.weight.grad.norm())


def test_channels_are_those_of_the_outer_products(case: Case, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    one, other = (look(build(SPECS[1], case.data, seed), *batch) for seed in (0, 1))
    s, t = (functional.normalize(g[:, :, None] @ g[:, None], dim=2) for g in (one.gradient, other.gradient))
    expected = -float((s - t).square().sum((1, 2)).mean() / s.shape[1])
    assert similarities(one, other)["channels"] == pytest.approx(expected, rel=1e-4)


def test_standard_normal_weights_change_the_classifier_alone(
    case: Case, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    usual, normal = (build(SPECS[0], case.data, 3, draw) for draw in ("", "normal"))
    weights = {name: weight for name, weight in normal.named_parameters() if "head" not in name}
    scaled = {name: w / 2 if w.dim() > 1 else w for name, w in weights.items()}
    usual.load_state_dict(scaled, strict=False)
    torch.testing.assert_close(look(usual, *batch).rows, look(normal, *batch).rows, atol=1e-3, rtol=1e-3)


def test_every_student_of_the_digits_has_its_scores(case: Case) -> None:
    scores, seconds = measure(case, inits=2)
    again, _ = measure(case, inits=2)
    assert all(np.array_equal(scores[name], again[name], equal_nan=True) for name in scores)
    assert seconds.shape == (4,) and (seconds > 0).all()
    for which in ("random", "trained"):
        assert np.isfinite(scores[f"diswot, {which} teacher"]).all()
        wide = np.isfinite(scores[f"channels, {which} teacher"]).all(0)
        assert wide.tolist() == [False, True, False, False]  # as wide as the teacher under the classifier
    assert np.isneginf(scores["nwot"][:, 3]).all() and np.isfinite(scores["nwot"][:, :3]).all()  # no ReLU in the last
    assert not np.array_equal(scores["gradient"][0], scores["gradient"][1])


def test_a_pick_is_worth_what_enumeration_says() -> None:
    score, values = np.array([3.0, 1.0, 2.0, 2.0, -np.inf]), np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    found = [
        np.mean([values[i] for i in each if score[i] == max(score[list(each)])]) for each in combinations(range(5), 2)
    ]
    assert training_free.picked(score, values, 2) == pytest.approx(np.mean(found))


def test_a_score_that_knows_the_answer_adds_to_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 trainings of 32 made-up students whose values have nothing to do with their sizes."""
    monkeypatch.setattr(training_free, "RESAMPLES", 100)
    rng, student = np.random.default_rng(0), np.repeat(np.arange(32), 4)
    answer = rng.normal(size=32)
    known = Known("made up", student, answer[student] + rng.normal(scale=0.1, size=128), {})
    sizes = {name: rng.uniform(1, 9, size=32)[student] for name in training_free.SIZES}
    predictors = {**sizes, "oracle": answer[student], "noise": rng.normal(size=32)[student]}
    evidence = training_free.Evidence(known, predictors, np.array(["plain", "mlp"])[student % 2])
    plain = training_free.tau(training_free.left_out(evidence), known.values)
    told = training_free.tau(training_free.left_out(evidence, predictors["oracle"]), known.values)
    useless = training_free.tau(training_free.left_out(evidence, predictors["noise"]), known.values)
    assert told > 0.7 and abs(plain) < 0.3 and abs(useless - plain) < 0.2
    for part in (training_free.correlations, training_free.additions, training_free.picks):
        assert "oracle" in part([evidence])
    line = next(line for line in training_free.picks([evidence]).splitlines() if "oracle" in line)
    assert line.endswith("better |")


def test_the_command_knows_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["training_free", "--help"])
    with pytest.raises(SystemExit):
        training_free.main()
    assert "--inits" in capsys.readouterr().out
