"""Tables answer with what was recorded, and their regret is the one they say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from made_up import EPOCHS, MadeUp
from onnx import TensorProto, helper

from benchmarks.search import lcbench, tasks
from benchmarks.search.diswot import DEPTHS, Diswot
from benchmarks.search.lcbench import Lcbench
from benchmarks.search.tables import draw
from benchmarks.search.taskset import RANGES, WORST, Taskset

CODE = 7


@pytest.fixture
def surrogate(tmp_path: Path) -> Path:
    """A model that answers: time = epoch, accuracy = 100 - code - epoch / batch size."""
    nodes = [
        helper.make_node("Slice", ["x_cont", "zero", "one", "axis"], ["epoch"]),
        helper.make_node("Slice", ["x_cont", "one", "two", "axis"], ["batch"]),
        helper.make_node("Div", ["epoch", "batch"], ["share"]),
        helper.make_node("Cast", ["x_cat"], ["code"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["hundred", "code"], ["left"]),
        helper.make_node("Sub", ["left", "share"], ["accuracy"]),
        helper.make_node("Concat", ["epoch", "accuracy"], ["output"], axis=1),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "axis": np.array([1])}
    constants["hundred"] = np.array([100.0], np.float32)
    graph = helper.make_graph(
        nodes,
        "surrogate",
        [
            helper.make_tensor_value_info("x_cat", TensorProto.INT32, ["N", 1]),
            helper.make_tensor_value_info("x_cont", TensorProto.FLOAT, ["N", 8]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "model.onnx")
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": {"1": CODE}}))
    return tmp_path


def test_lcbench_asks_its_surrogate(surrogate: Path) -> None:
    table = Lcbench(surrogate, "1")
    point = table.space.complete({"optim.batch": 16})
    epochs = np.arange(1, lcbench.EPOCHS + 1)
    assert table.values(point) == pytest.approx((100 - CODE - epochs / 16) / 100, abs=1e-5)
    assert table.epoch_seconds(point) == 1.0
    finals, seconds = table.ends([point])
    assert finals == pytest.approx([table.values(point)[-1]]) and seconds == pytest.approx([lcbench.EPOCHS])
    assert table.reference.best == pytest.approx((100 - CODE - 52 / 512) / 100, abs=1e-3)


def test_taskset_answers_with_the_nearest_setting(tmp_path: Path) -> None:
    settings = np.array([[np.sqrt(low * high) for low, high in RANGES.values()]] * 3)
    settings[1, 0], settings[2, 0] = 1e-7, 5.0  # learning rates
    settings[:, 1:3] = 1 - settings[:, 1:3]
    loss = np.full((3, 51), 0.6)
    loss[1, 10:] = 1e18
    loss[2, 30] = np.nan
    np.savez(tmp_path / "imdb_tiny.npz", hp=settings, valid=loss)
    table = Taskset(tmp_path / "imdb_tiny.npz")
    middle = table.space.prior_point()
    assert (table.values(middle) == -0.6).all()
    assert table.values(middle | {"optim.lr": 1e-8})[-1] == -WORST
    diverged = table.values(middle | {"optim.lr": 10.0})
    assert (diverged[:29] == -0.6).all() and np.isnan(diverged[29:]).all(), "once diverged, diverged"
    assert table.final(middle | {"optim.lr": 10.0}) == -WORST
    assert [table.final(point) for point in table.reference_points()] == [-0.6, -WORST, -WORST]


def test_diswot_knows_every_student(tmp_path: Path) -> None:
    rows = [f"{a},{b},{c},{60 + a},{70 + a + b / 10 + c / 100}" for a in DEPTHS for b in DEPTHS for c in DEPTHS]
    (tmp_path / "table.csv").write_text("\n".join(["depth1,depth2,depth3,acc_plain,acc_kd", *rows]))
    table = Diswot(tmp_path / "table.csv")
    points = table.reference_points()
    assert len(points) == 64 and len({table.final(point) for point in points}) == 64
    assert table.reference.best == pytest.approx(0.7777) and table.epochs == 1
    smallest, largest = (table.cost(table.space.recipe(points[k]).student) for k in (0, -1))
    assert 70_000 < smallest.params < largest.params < 900_000  # ResNet-8 has 78,000


def test_regret_is_zero_at_the_best_and_one_at_the_median() -> None:
    table = MadeUp()
    assert table.regret(table.reference.best) == 0.0
    assert table.regret(table.reference.median) == 1.0
    assert len({json.dumps(point) for point in table.reference_points()}) > 900
    assert MadeUp().reference == table.reference


def test_seeds_are_averaged_and_divergence_counts_as_the_floor() -> None:
    table, rng = MadeUp(seeds=2), random.Random(0)
    point = draw(table.space, rng) | {"optim.lr": 0.03}
    assert table.final(point) == pytest.approx(table.values(point, 0)[-1] + 0.005)
    assert table.final(point | {"optim.lr": 0.9}) == table.floor
    assert table.values(point).shape == (EPOCHS,)


def test_halves_do_not_overlap_and_hold_every_suite() -> None:
    assert not set(tasks.DEVELOPMENT) & set(tasks.HELD_OUT)
    assert set(tasks.SHORT) <= set(tasks.DEVELOPMENT) | set(tasks.HELD_OUT)
    for half in tasks.HALVES.values():
        assert {"lcbench", "taskset"} <= {tasks.suite_of(name) for name in half}


def test_tables_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="name its folder with --data"):
        tasks.load("diswot", tmp_path)
