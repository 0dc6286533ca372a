"""The KD table answers a point with the recipe that is most like it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import kd_table
from benchmarks.search.kd import Kd
from benchmarks.search.tables import draw

SPACE = Path(kd_table.__file__).with_name("kd_space.yaml").read_text()
ROWS, EPOCHS = 40, 27


@pytest.fixture
def table(tmp_path: Path) -> Kd:
    """Curves that say their row: row / 100 + epoch / 10,000, the second seed 0.001 higher. Row 3 diverges in its second seed."""
    from autokd.arguments import vocabulary
    from autokd.space import Space

    space, rng = Space.parse(SPACE, vocabulary()), random.Random(0)
    points = [draw(space, rng) for _ in range(ROWS)]
    shape = (1, ROWS, 2)
    curves = np.arange(ROWS)[None, :, None, None] / 100 + np.arange(EPOCHS) / 10_000 + np.array([[[[0.0], [0.001]]]])
    curves[0, 3, 1, 5:] = np.nan
    seconds = np.full(shape, 2.0)
    seconds[0, 3, 1] = np.nan
    told = {"name": "tiny", "input_shape": [1, 8, 8], "chance": 0.1}
    arrays = {name: np.zeros(shape) for name in kd_table.NUMBERS} | {"curves": curves, "seconds": seconds}
    texts = {
        "points": np.array([json.dumps(point) for point in points]),
        "names": np.array([""] * ROWS),
        "problems": np.array(["tiny"]),
        "space": np.array(SPACE),
        "about": np.array(json.dumps({"problems": [told]})),
    }
    np.savez(tmp_path / "table.npz", **arrays, **texts)
    return Kd("tiny", tmp_path / "table.npz")


def test_a_recorded_recipe_answers_for_itself(table: Kd) -> None:
    assert [table.nearest(point) for point in table.points] == list(range(ROWS))
    assert table.values(table.points[7], seed=1)[-1] == pytest.approx(0.07 + 0.0026 + 0.001)


def test_seeds_are_averaged_and_a_divergence_is_at_chance(table: Kd) -> None:
    assert table.final(table.points[7]) == pytest.approx(0.07 + 0.0026 + 0.0005)
    assert table.final(table.points[3]) == pytest.approx((0.03 + 0.0026 + 0.1) / 2)
    assert table.epoch_seconds(table.points[3]) == 2.0


def test_a_small_change_is_answered_by_the_same_recipe(table: Kd) -> None:
    lr = float(table.points[5]["optim.lr"])
    assert table.nearest(table.points[5] | {"optim.lr": min(lr * 1.3, 3.0)}) == 5


def test_a_field_that_exists_on_one_side_only_is_as_far_as_can_be(table: Kd) -> None:
    table._weights[:] = 1.0
    point = next(point for point in table.points if point["select.logits"] == "kd")
    near, far = (point | {"terms.kd.temperature": value} for value in (1.0, 20.0))
    gone = table.space.complete({k: v for k, v in point.items() if "kd" not in k} | {"select.logits": "none"})
    apart = [table._distance(table._coded(each))[table.nearest(point)] for each in (point, near, far, gone)]
    assert apart[0] == 0 and apart[1] + apart[2] == pytest.approx(1.0)
    assert apart[3] >= 3  # the choice, the weight and the temperature


def test_fields_weigh_as_much_as_they_matter(table: Kd) -> None:
    lr = np.array([float(point["optim.lr"]) for point in table.points])
    table._curves = np.tile(np.log(lr)[:, None, None], (1, 2, EPOCHS))  # what a recipe is worth follows from one field
    table._weights[:] = 1.0
    alike = table.left_out()
    table._weights = table._importance()
    names = [field.name for field in table.space.fields]
    assert table._weights.mean() == pytest.approx(1.0) and names[table._weights.argmax()] == "optim.lr"
    assert table.left_out() > max(0.8, alike + 0.2)


def test_costs_are_those_of_the_network(table: Kd) -> None:
    narrow, wide = (
        table.space.complete({"student.family": "plain", "student.plain.width": width}) for width in (4, 12)
    )
    costs = [table.cost(table.space.recipe(point).student) for point in (narrow, wide)]
    assert 4 < costs[1].params / costs[0].params < 9
