"""What is done to the teacher before it teaches: made ready once, heard by the recipes that ask for it, never done twice."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EVERYTHING, KD, expert, images, order, recipe, segments, tape_plan, taped
from torch import Tensor, nn

import autokd
from autokd import stage0
from autokd.arguments import vocabulary
from autokd.core.gathering import step_of
from autokd.core.headed import Headed
from autokd.core.teachings import by_stage0
from autokd.errors import InputError, TeacherError, TrialFailure
from autokd.orders import Report
from autokd.recipe import Recipe
from autokd.space import Space
from autokd.stage0 import STAGES0, made_ready, stages0_of
from autokd.teacher import Teacher

torch.set_num_threads(1)
SMOOTH = recipe(terms=(KD,), stage0="smooth")
GIVEN = recipe(terms=(KD,))
SPACE = """
version: 1
about: one small student, taught by the teacher as it is or made smoother
task: classification
epochs: {max: 2}
fields:
  stage0: {choice: [none, smooth], prior: smooth}
  student.family: resnet
  student.resnet.width: {int: [4, 8], prior: 4}
  student.resnet.depth1: 1
  student.resnet.depth2: 1
  student.resnet.depth3: 1
  ce_weight: 0.1
  terms.kd.weight: {float: [0.5, 2], prior: 0.9}
  terms.kd.temperature: 4
  optim.lr: 0.05
  optim.batch: 16
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and one core: others may be busy with other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("teacher", "smoothing"):
        monkeypatch.setattr(f"autokd.{module}.cpu_count", lambda: 1)


@pytest.fixture
def smoothed(monkeypatch: pytest.MonkeyPatch) -> list[Teacher]:
    """Every teacher that was made smoother."""
    made: list[Teacher] = []
    real = stage0.smooth

    def watched(teacher: Teacher, **settings: Any) -> Teacher:
        made.append(real(teacher, **settings))
        return made[-1]

    monkeypatch.setattr(stage0, "smooth", watched)
    return made


def teacher(**about: Any) -> Teacher:
    return Teacher(
        expert(), images(60), name="expert", about={"family": "resnet", "spec": {"width": 8}, "epochs": 6, **about}
    )


def unlike(module: nn.Module) -> nn.Module:
    """A network that says something else."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    return other


def logits(module: nn.Module, of: Teacher) -> Tensor:
    return module(torch.as_tensor(of.data.val.x[:8]).float() / 255)  # type: ignore[no-any-return]


# ---- made ready


def test_every_stage0_of_recipes_can_be_made() -> None:
    assert set(STAGES0) == set(Recipe.model_json_schema()["properties"]["stage0"]["enum"])


def test_the_teacher_is_left_alone_and_made_smoother(
    smoothed: list[Teacher], capsys: pytest.CaptureFixture[str]
) -> None:
    given = teacher()
    before = logits(given.module, given)
    modules = made_ready(given, ("none", "smooth"), ["kd"], "cpu", True)
    assert list(modules) == ["none", "smooth"] and modules["none"] is given.module
    assert len(smoothed) == 1 and modules["smooth"] is smoothed[0].module
    assert torch.equal(logits(modules["none"], given), before)
    assert not torch.equal(logits(modules["smooth"], given), before)
    assert f"validation accuracy {smoothed[0].value:.2%}, before {given.value:.2%}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_nobody_asks_for_is_not_made(smoothed: list[Teacher]) -> None:
    assert list(made_ready(teacher(), ("none",), ["kd"], "cpu", False)) == ["none"] and smoothed == []


def test_each_has_the_heads_that_losses_read(smoothed: list[Teacher]) -> None:
    """Trained on its own outputs."""
    modules = made_ready(teacher(), ("none", "smooth"), ["mtkd_ssr"], "cpu", False)
    assert all(isinstance(module, Headed) for module in modules.values())
    heads = [list(module.heads.parameters()) for module in modules.values()]  # type: ignore[union-attr]
    assert not all(torch.equal(one, other) for one, other in zip(*heads, strict=True))


def test_a_teacher_without_an_embedding_is_made_smoother_too() -> None:
    """A network whose last layer is a convolution: there are no embeddings to compare, and nothing is asked of them."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with torch.no_grad():  # one filter a class: bright left, top, middle
        module[0].weight.zero_()
        module[0].weight[0, :, :, :4] = module[0].weight[1, :, :4] = module[0].weight[2, :, 2:6, 2:6] = 1.0
        module[0].weight -= module[0].weight.mean((1, 2, 3), keepdim=True)
    of = Teacher(module, images(60), name="coarse", about={"epochs": 2})
    assert not of.shapes.embedding
    modules = made_ready(of, ("smooth",), ["kd"], "cpu", False)
    assert not torch.equal(logits(modules["smooth"], of), logits(of.module, of))


def test_a_teacher_that_forgot_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ruined(of: Teacher, **settings: Any) -> Teacher:
        module = copy.deepcopy(of.module)
        for parameter in module.parameters():
            parameter.data.zero_()
        return Teacher(module, of.data, name="ruined")

    monkeypatch.setattr(stage0, "smooth", ruined)
    with pytest.raises(TeacherError, match="must know more than chance"):
        made_ready(teacher(), ("smooth",), ["kd"], "cpu", False)


@pytest.mark.parametrize("how", ["search", "distill"])
def test_it_is_not_made_smoother_twice(tmp_path: Path, how: str, smoothed: list[Teacher]) -> None:
    of = teacher(smoothed={"lip": 1e-5})
    with pytest.raises(InputError, match="stage0 'smooth' needs the teacher as it was.*leave out --smooth"):
        if how == "distill":
            autokd.distill(of, SMOOTH, epochs=1, verbose=False)
        else:
            autokd.search(of, "2 trials", space=space(tmp_path), run_dir=tmp_path / "run", verbose=False)
    assert smoothed == [] and not (tmp_path / "run").exists()


# ---- spaces and recipes


def space(folder: Path) -> Path:
    path = folder / "space.yaml"
    path.write_text(SPACE)
    return path


def test_a_space_says_what_must_be_ready() -> None:
    """The teacher as given always: controls listen to it."""
    assert stages0_of(Space.parse(SPACE, vocabulary())) == ("none", "smooth")
    assert stages0_of(
        Space.parse(SPACE.replace("{choice: [none, smooth], prior: smooth}", "smooth"), vocabulary())
    ) == ("none", "smooth")
    assert stages0_of(Space.load("digits", vocabulary())) == ("none",)


def test_controls_hear_the_teacher_as_it_was_given() -> None:
    assert SMOOTH.with_default_kd().stage0 == SMOOTH.without_distillation().stage0 == "none"


def test_it_does_not_count_where_nobody_listens() -> None:
    assert recipe(stage0="smooth") == recipe() and recipe(stage0="smooth").id == recipe().id
    assert SMOOTH.id != GIVEN.id


def test_trials_of_different_teachers_are_no_cohort() -> None:
    assert step_of(order(SMOOTH)) != step_of(order(GIVEN))


# ---- in a core


def test_each_recipe_hears_its_own_teacher(tmp_path: Path) -> None:
    """As from a core of that teacher alone, live and from the tape, together and alone."""
    networks = {"none": expert(), "smooth": unlike(expert())}
    for tape in (None, tape_plan(tmp_path / "tape", EVERYTHING)):
        both = taped(tmp_path / f"both-{tape is None}", tape, teacher=networks)
        orders = [replace(order(of), trial=of.stage0) for of in (GIVEN, SMOOTH)]
        answers = both.advance_together(orders)
        both.close()
        alone = {}
        for name, network in networks.items():
            core = taped(tmp_path / f"{name}-{tape is None}", tape, teacher=network)
            alone[name] = core.advance(order(GIVEN)).history[-1]["terms"]["kd"]
            core.close()
        told = [answer.history[-1]["terms"]["kd"] for answer in answers if isinstance(answer, Report)]
        assert told == pytest.approx([alone["none"], alone["smooth"]], rel=1e-5)
        assert alone["none"] != pytest.approx(alone["smooth"], rel=1e-3)
    assert len({Path(name).parts[0] for name in segments(tmp_path / "tape")}) == 2


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    core = taped(tmp_path, None)
    (answer,) = core.advance_together([order(SMOOTH)])
    core.close()
    assert isinstance(answer, TrialFailure) and "stage0 of the recipe is 'smooth'" in str(answer)


def test_one_network_is_the_teacher_as_given() -> None:
    module = expert()
    assert by_stage0(module) == {"none": module} and by_stage0(None) == {}


# ---- as users call it


def test_distill_makes_the_teacher_ready(smoothed: list[Teacher]) -> None:
    done = autokd.distill(teacher(), SMOOTH, epochs=1, verbose=False)
    other = autokd.distill(teacher(), GIVEN, epochs=1, verbose=False)
    assert len(smoothed) == 1
    assert done.history[0]["terms"]["kd"] != other.history[0]["terms"]["kd"]


def test_a_search_chooses_between_them_and_goes_on(tmp_path: Path, smoothed: list[Teacher]) -> None:
    """Both are tried; the second session takes the smoother one from the cache."""
    settings: dict[str, Any] = {"executor": "inline", "tracking": False, "tape": tmp_path / "tape", "verbose": False}
    found = autokd.search(
        teacher(),
        "6 trials",
        space=space(tmp_path),
        run_dir=tmp_path / "run",
        constraints={"params": "20k"},
        epochs=2,
        **settings,
    )
    searched = [trial for trial in found.history.trials.values() if trial.role == "search"]
    assert {trial.recipe.stage0 for trial in searched} == {"none", "smooth"}
    assert all(trial.reason is None for trial in searched)
    assert any("stage0 smooth" in note for note in found.head["plan"]["notes"])
    assert len(smoothed) == 1
    autokd.resume(tmp_path / "run", "2 trials", teacher=teacher(), verbose=False)
    assert len(smoothed) == 2
