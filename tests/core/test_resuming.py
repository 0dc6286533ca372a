"""A trial that was paused, moved or damaged ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import ALONE, own
from tiny import KD, core, images, order, recipe
from torch import Tensor

from autokd.core import checkpoint
from autokd.orders import Report
from autokd.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "sgd": lambda: recipe(terms=(KD,)),
    "no momentum": lambda: recipe(optim={"momentum": 0.0}),
    "adamw": lambda: recipe("mobilenet", terms=(KD,), optim={"name": "adamw", "lr": 0.003}),
    "adaptors and peers": lambda: recipe("plain", terms=(ALONE["fitnet"], ALONE["rkd"]), peers={"count": 2}),
    "own": lambda: recipe(
        terms=(ALONE["byot"], {**ALONE["past"], "after": 0.3}, ALONE["tfkd_reg"]), peers={"count": 1}
    ),
    "remembering": lambda: recipe(terms=(ALONE["crd"],), augment={"policy": "jda"}),
    "augmented": lambda: recipe(terms=(KD,), augment={"policy": "jda", "ccd": True}),
    "dropout": lambda: own("well", terms=({**KD, "schedule": "linear", "share": 0.5},)),
}


def result(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, meta = checkpoint.load(folder / "t.safetensors")
    for row in meta["history"]:
        row.pop("seconds")
        row.pop("recording")
    return tensors, meta


def trained(folder: Path, of: Recipe, *stops: int) -> list[Report]:
    """Train to each stop in turn, each with a core of its own, as after a move to another process."""
    reports = []
    for start, to in zip((0, *stops), stops, strict=False):
        reports.append(core(folder, images()).advance(order(of, to=to, start=start)))
    return reports


def assert_equal(one: Path, other: Path) -> None:
    (tensors, meta), (its_tensors, its_meta) = result(one), result(other)
    assert meta == its_meta
    assert tensors.keys() == its_tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, its_tensors[name])] == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_trial_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path, name: str) -> None:
    of = RECIPES[name]()
    reports = trained(tmp_path / "paused", of, 1, 2, 3)
    [whole] = trained(tmp_path / "whole", of, 3)
    assert_equal(tmp_path / "paused", tmp_path / "whole")
    assert (reports[-1].value, reports[-1].tiebreak) == (whole.value, whole.tiebreak)
    assert [row["epoch"] for report in reports for row in report.history] == [1, 2, 3]
    assert [report.retries for report in reports] == [0, 0, 0]
    tensors, _ = result(tmp_path / "whole")
    kept = any(key.startswith("optimiser.") for key in tensors)
    assert kept == (name != "no momentum")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_recipe(path: Path) -> None:
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path, tensors, {**meta, "recipe": recipe(width=8).to_dict()})


def of_another_seed(path: Path) -> None:
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path, tensors, {**meta, "seed": 9})


def of_another_network(path: Path) -> None:
    tensors, meta = checkpoint.load(path)
    checkpoint.save(path, {name: t for name, t in tensors.items() if name != "parts.0.head.weight"}, meta)


@pytest.mark.parametrize(
    "damage", [flip, truncate, of_another_recipe, of_another_seed, of_another_network, Path.unlink]
)
def test_a_damaged_checkpoint_costs_time_only(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    of = RECIPES["sgd"]()
    trained(tmp_path / "whole", of, 3)
    trained(tmp_path / "torn", of, 2)
    damage(tmp_path / "torn" / "t.safetensors")
    report = core(tmp_path / "torn").advance(order(of, to=3, start=2))
    assert report.retries == 1 and report.epoch == 3
    assert [row["epoch"] for row in report.history] == [3], "the ledger knows the epochs before"
    assert_equal(tmp_path / "torn", tmp_path / "whole")


def test_a_report_that_was_lost_is_given_again_without_training(tmp_path: Path) -> None:
    """Killed between checkpoint and ledger: the epochs are in the checkpoint, the ledger does not know them."""
    of = RECIPES["sgd"]()
    [first] = trained(tmp_path, of, 2)
    its_core = core(tmp_path)
    its_core._epoch = None  # type: ignore[assignment, method-assign]
    again = its_core.advance(order(of, to=2, start=0))
    assert (again.value, again.history, again.retries) == (first.value, first.history, 0)
