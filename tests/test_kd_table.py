"""The KD table: what is in the file, and the program that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autokd.arguments import vocabulary
from autokd.data import Data
from autokd.errors import InputError
from autokd.recipe import Recipe
from autokd.space import Space
from benchmarks.search import kd_facts, kd_problems, kd_training
from benchmarks.search import make_kd_table as program
from benchmarks.search.kd_table import PATH, KDTable, pack
from benchmarks.search.kd_training import Job, Place

EPOCHS = 27


@pytest.fixture(scope="module")
def table() -> KDTable:
    return KDTable.load()


@pytest.fixture(scope="module")
def space(table: KDTable) -> Space:
    return Space.parse(table.space, vocabulary())


# ---- the file


def test_it_is_small_and_complete(table: KDTable) -> None:
    assert PATH.stat().st_size < 3_000_000
    shape = (2, len(table.points), 2, EPOCHS)
    assert shape[1] >= 400 and table.problems == ("digits", "fashion_mnist")
    assert table.curves.shape == table.losses.shape == shape
    assert table.seconds.shape == table.seconds_min.shape == table.failed.shape == table.failed_epoch.shape == shape[:3]
    assert table.flops.shape == table.params.shape == table.student_flops.shape == shape[:2]


def test_numbers_are_possible(table: KDTable) -> None:
    known = ~np.isnan(table.curves)
    assert ((table.curves[known] >= 0) & (table.curves[known] <= 1)).all()
    assert (known == ~np.isnan(table.losses)).all() and (table.losses[known] >= 0).all()
    assert (table.params > 0).all() and (table.flops > 0).all() and (table.student_flops > 0).all()
    timed = known[..., 0]
    assert (table.seconds_min[timed] > 0).all() and (table.seconds_min[timed] <= table.seconds[timed]).all()


def test_a_curve_ends_where_its_training_failed(table: KDTable) -> None:
    ended = (~np.isnan(table.curves)).sum(-1)
    broken = np.isin(table.failed, ["nan", "exception"])
    assert (ended[broken] == table.failed_epoch[broken] - 1).all() and (ended[~broken] == EPOCHS).all()
    assert (table.failed_epoch[table.failed == ""] == 0).all()
    chance = np.array([problem["chance"] for problem in table.about["problems"]])[:, None, None]
    at_chance = np.where(broken, 1.0, table.curves[..., -1]) <= chance + 1e-3  # float16
    assert set(np.unique(table.failed)) <= {"", "nan", "chance", "exception"}
    assert at_chance[table.failed == "chance"].all()


def test_points_are_different_recipes_of_the_space(table: KDTable, space: Space) -> None:
    assert all(space.complete(point) == point for point in table.points)
    assert len({space.recipe(point).id for point in table.points}) == len(table.points)
    first = dict(space.first)
    assert {name: point for name, point in zip(table.names, table.points, strict=True) if name in first} == first


def test_points_are_spread_evenly(table: KDTable, space: Space) -> None:
    drawn = [point for name, point in zip(table.names, table.points, strict=True) if not name]
    rate = next(field for field in space.fields if field.name == "optim.lr")
    shares = np.log(np.array([point["optim.lr"] for point in drawn], float) / rate.low) / np.log(rate.high / rate.low)
    assert np.abs(np.quantile(shares, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.06
    families = [[point["student.family"] for point in drawn].count(name) for name in ("resnet", "plain", "mlp")]
    assert min(families) > 0.3 * len(drawn)


def test_recipes_differ_by_far_more_than_seeds(table: KDTable) -> None:
    for at, about in enumerate(table.about["problems"]):
        ends = kd_facts.final(table, at)
        everything, best = np.ones(len(ends), dtype=bool), ends >= np.median(ends)
        assert ends.std() > 3 * kd_facts.seed_noise(table, at, everything)
        assert ends[best].std() > 1.5 * kd_facts.seed_noise(table, at, best)
        assert ends.max() > 0.8 * about["teacher"]["accuracy"]


def test_costs_are_those_of_the_recipes(table: KDTable, space: Space) -> None:
    from autokd.students import FAMILIES
    from autokd.students.describe import describe

    for number in (0, len(table.points) // 2):
        student = space.recipe(table.points[number]).student
        shape = tuple(table.about["problems"][1]["input_shape"])
        cost = describe(FAMILIES[student.family], student.fields, shape, 10)
        assert (cost.params, cost.flops) == (table.params[1, number], table.student_flops[1, number])
    logs = np.log(table.flops[1]), np.log(table.seconds_min[1].mean(1))
    timed = ~np.isnan(logs[1])
    assert np.corrcoef(logs[0][timed], logs[1][timed])[0, 1] > 0.7


# ---- packing


def trained(problem: str, recipe: str, seed: int, accuracy: list[float], failed: str | None = None) -> dict[str, Any]:
    return {
        "problem": problem,
        "recipe": recipe,
        "seed": seed,
        "accuracy": accuracy,
        "loss": [1e9 for _ in accuracy],
        "seconds": [0.1 + 0.1 * n for n in range(len(accuracy))],
        "failed": failed and {"reason": failed, "message": ""},
    }


ABOUT: dict[str, Any] = {
    "space": "text",
    "epochs": 3,
    "seeds": 1,
    "problems": [{"name": "p", "chance": 0.1}],
    "names": ["", "known", ""],
    "points": [{"a": 1}, {"a": 2}, {"a": 3}],
    "recipes": ["r1", "r2", "r3"],
    "prices": [[[10, 20, 30.0], [11, 21, 31.0], [12, 22, 32.0]]],
    "versions": {},
}


def test_packing_keeps_what_was_trained(tmp_path: Path) -> None:
    rows = [
        trained("p", "r1", 0, [0.5, 0.6, 0.7]),
        trained("p", "r2", 0, [0.5], "nan"),
        trained("p", "r3", 0, [0.2, 0.1, 0.1]),
    ]
    assert pack(ABOUT, rows, tmp_path / "table.npz", partial=False) == 3
    table = KDTable.load(tmp_path / "table.npz")
    assert table.failed[0, :, 0].tolist() == ["", "nan", "chance"]
    assert table.failed_epoch[0, :, 0].tolist() == [0, 2, 3]
    assert np.isnan(table.curves[0, 1, 0]).tolist() == [False, True, True]
    np.testing.assert_allclose(table.curves[0, 0, 0], [0.5, 0.6, 0.7], atol=1e-3)
    assert np.isfinite(table.losses[0, 0]).all()
    np.testing.assert_allclose([table.seconds[0, 0, 0], table.seconds_min[0, 0, 0]], [0.2, 0.1])
    assert table.points[1] == {"a": 2} and table.names[1] == "known" and table.params[0].tolist() == [10, 11, 12]


def test_a_partial_table_has_the_recipes_that_are_finished(tmp_path: Path) -> None:
    rows = [trained("p", "r1", 0, [0.5, 0.6, 0.7]), trained("p", "r3", 0, [], "exception")]
    with pytest.raises(InputError, match="--partial"):
        pack(ABOUT, rows, tmp_path / "table.npz", partial=False)
    assert pack(ABOUT, rows, tmp_path / "table.npz", partial=True) == 2
    table = KDTable.load(tmp_path / "table.npz")
    assert table.points == ({"a": 1}, {"a": 3}) and table.flops[0].tolist() == [30, 32]
    assert np.isnan(table.seconds[0, 1, 0]) and table.failed_epoch[0, 1, 0] == 1


def test_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make_kd_table"):
        KDTable.load(tmp_path / "none.npz")


# ---- the program


def test_the_first_recipes_stay_the_same_when_more_are_asked_for() -> None:
    space = Space.load(program.SPACE, vocabulary())
    few, more = program.points(space, 20), program.points(space, 40)
    assert more[:20] == few and [name for name, _ in few[:8]] == [name for name, _ in space.first]
    with pytest.raises(InputError, match="at most"):
        program.points(space, 10_000)


def test_a_torn_line_is_trained_again(tmp_path: Path) -> None:
    whole = trained("p", "r1", 0, [0.5])
    (tmp_path / "trainings.jsonl").write_text(json.dumps(whole) + "\n" + json.dumps(whole)[:20])
    assert program.finished(tmp_path) == [whole]
    assert program.finished(tmp_path / "new") == []


def test_another_space_needs_another_folder(tmp_path: Path) -> None:
    program._keep(tmp_path / "about.json", ABOUT)
    program._keep(tmp_path / "about.json", {**ABOUT, "recipes": ["r1", "r2", "r3", "r4"]})
    with pytest.raises(InputError, match="same space"):
        program._keep(tmp_path / "about.json", {**ABOUT, "space": "another"})


def test_digits_are_split_without_overlap() -> None:
    rows = kd_problems.digits(Path())
    assert [len(y) for _, y in rows] == [400, 400, 800]
    assert np.bincount(rows.student[1]).tolist() == [40] * 10


def test_shrunk_images_are_means() -> None:
    x = np.zeros((1, 1, 7, 7), dtype=np.uint8)
    x[0, 0, :3, 3:6] = 90
    x[0, 0, 6, 6] = 255
    assert kd_problems.shrunk(x)[0, 0].tolist() == [[0, 90], [0, 0]]


@pytest.fixture
def place(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The digits, with a teacher that is there already."""
    rows = kd_problems.digits(Path())
    data: Data = kd_problems._data(rows.student, rows.held, False, "digits")
    made = kd_problems.Problem(data, tiny)
    monkeypatch.setattr(kd_training, "problem", lambda name, folder: made)
    kd_training._core.cache_clear()
    return Place(tmp_path, tmp_path)


def test_a_training_and_its_failure(place: Place) -> None:
    values = {"student.family": "mlp", "terms.kd.weight": 0.9, "optim.lr": 0.1, "optim.batch": 64}
    done = kd_training.train(Job("digits", 0, Recipe.from_flat(values), 1), 3, place)
    assert done["failed"] is None and len(done["accuracy"]) == len(done["loss"]) == len(done["seconds"]) == 3
    assert done["accuracy"][-1] > 0.5 and (done["problem"], done["seed"]) == ("digits", 1)
    again = kd_training.train(Job("digits", 0, Recipe.from_flat(values), 1), 3, place)
    assert again["accuracy"] == done["accuracy"], "the same recipe and seed give the same curve"
    broken = kd_training.train(Job("digits", 1, Recipe.from_flat(values | {"optim.lr": 1e30}), 0), 3, place)
    assert broken["failed"]["reason"] == "nan" and len(broken["accuracy"]) < 3
    unfit = Recipe.from_flat(values | {"terms.at.weight": 1.0})
    assert kd_training.train(Job("digits", 2, unfit, 0), 3, place)["failed"]["reason"] == "exception"


# ---- the page


def test_the_page_tells_what_is_in_the_file(table: KDTable) -> None:
    page = (PATH.parent / "KD_TABLE.md").read_text()
    for title in ("Sizes", "Noise", "Early epochs", "Failures"):  # the forests of "What matters" take too long
        assert kd_facts.markdown(*kd_facts.PARTS[title](table)) in page, f"run kd_facts --into: '{title}' is old"
    assert "(to be filled)" not in page


def test_tables_are_put_under_their_headings() -> None:
    page = "# Page\n\n## Sizes\n\nold\nold\n\nkept\n\n## Noise\n\nold\n\nend\n"
    assert kd_facts.filled(page, {"Sizes": "new"}) == page.replace("old\nold", "new")
    with pytest.raises(InputError, match="heading '## Failures'"):
        kd_facts.filled(page, {"Failures": "new"})
