"""Every system of peers in real training: from checkpoint to checkpoint, recorded, shared, counted, and left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from sharing import alone, assert_close, in_turns, never_at_chance, pool_of, recorded, small, state
from tiny import CLASSES, SHAPE, Coarse, CoarseFamily, core, images, order, recipe
from torch import Tensor, nn

from autokd.core import checkpoint
from autokd.core.data import steps
from autokd.core.dials import structure
from autokd.core.loop import train_epoch
from autokd.core.run import load_student
from autokd.engine.passes import of_peers
from autokd.peers import SYSTEMS
from autokd.recipe import Recipe
from autokd.students import name_of

SYSTEM: dict[str, dict[str, Any]] = {
    "dml": {},
    "kdcl": {"ensemble": "min_logit", "temperature": 2.0},
    "one": {"temperature": 3.0},
    "ffcl": {"temperature": 3.0, "beta_f": 10.0},
    "ckd_mkt": {"temperature": 3.0, "init": "scratch", "first": 0.3},
}
EACH = pytest.mark.parametrize(("name", "count"), [(name, count) for name in SYSTEM for count in (1, 2)])


def test_these_are_all_systems() -> None:
    assert set(SYSTEM) == set(SYSTEMS)


def of_system(name: str, count: int = 1, **more: Any) -> Recipe:
    return recipe(peers={"system": name, "count": count, **SYSTEM[name], **more})


def trained(folder: Path, of: Recipe, *stops: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is in the checkpoint after training to each stop in turn, each with a core of its own."""
    for start, to in zip((0, *stops), stops, strict=False):
        its_core = core(folder, images(60))
        its_core.advance(order(of, to=to, start=start))
    tensors, meta = checkpoint.load(folder / "t.safetensors")
    for row in meta["history"]:
        row.pop("seconds")
        row.pop("recording")
    return tensors, meta


@EACH
def test_training_goes_on_to_the_last_bit_and_leaves_a_student(
    tmp_path: Path, name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_at_chance(monkeypatch)
    of = of_system(name, count)
    paused, its_meta = trained(tmp_path / "paused", of, 1, 2, 3)
    whole, meta = trained(tmp_path / "whole", of, 3)
    assert its_meta == meta and paused.keys() == whole.keys()
    assert [key for key, tensor in paused.items() if not torch.equal(tensor, whole[key])] == []
    assert all(bool(tensor.isfinite().all()) for tensor in whole.values())
    told = meta["history"][-1]["terms"]
    assert set(told) >= {"ce"} and any(key.startswith("peers") and value > 0 for key, value in told.items())
    student = load_student(recipe(), SHAPE, CLASSES, whole)
    assert not student.training and bool(student(torch.rand(3, *SHAPE)).isfinite().all())


def test_ffcl_without_its_parts_trains_as_mutual_learning_does(tmp_path: Path) -> None:
    ffcl = of_system("ffcl", fusion="off", gamma=0.0, beta_f=0.0)
    found = [trained(tmp_path / each.peers.system, each, 2)[0] for each in (ffcl, of_system("dml"))]
    students = [{key: t for key, t in tensors.items() if key.startswith("parts.0.")} for tensors in found]
    assert all(torch.equal(tensor, students[1][key]) for key, tensor in students[0].items())


def test_networks_that_begin_again_do_so_once_and_from_where_they_began(tmp_path: Path) -> None:
    """Before the second stage they are trained as without a partner; then from the initial weights."""
    its_core = core(tmp_path, images(60))
    run = its_core.new(of_system("ckd_mkt"), 0, its_core.setting)
    initial = {key: tensor.clone() for key, tensor in run.student.state_dict().items()}
    with its_core.setting.on_its_threads():
        train_epoch([run], its_core.rows, its_core.teaching, its_core.task, 3)
        learned = {key: tensor.clone() for key, tensor in run.student.state_dict().items()}
        run.begin_epoch(1 / 3)
    assert run.system is not None
    assert all(torch.equal(tensor, initial[key]) for key, tensor in run.student.state_dict().items())
    selves = run.system.selves[0].state_dict()  # type: ignore[index, union-attr]
    assert all(torch.equal(tensor, learned[key]) for key, tensor in selves.items())
    assert not torch.equal(learned["head.weight"], initial["head.weight"])
    plain = its_core.new(recipe(), 0, its_core.setting)
    with its_core.setting.on_its_threads():
        train_epoch([plain], its_core.rows, its_core.teaching, its_core.task, 3)
    assert all(torch.equal(tensor, learned[key]) for key, tensor in plain.student.state_dict().items())


# ---- recorded steps


@pytest.mark.parametrize("name", [name for name in SYSTEM if name != "dml"])
def test_trials_that_differ_in_dials_share_a_recorded_step(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_at_chance(monkeypatch)
    fields = {dial: 0.5 * SYSTEMS[name].fields[dial].default for dial in SYSTEMS[name].dials}  # type: ignore[operator]
    peers = {"system": name, "count": 1, **SYSTEM[name]}
    fields |= {"a": 0.9} if "a" in fields else {}
    of = [small(peers=peers), small(peers={**peers, **fields, "weight": 0.4})]
    assert structure(of[0]) == structure(of[1])
    expected = alone(tmp_path, of, 3)
    its_core = recorded(tmp_path / "ours", tape=tmp_path / "tape")
    in_turns(its_core, of, 3)
    assert len(pool_of(its_core)) == 1
    for number, end in enumerate(expected):
        assert_close(state(its_core, str(number)), end, 1e-4)


@pytest.mark.parametrize(
    ("name", "change", "shared"),
    [
        ("ffcl", {"gamma": 0.7, "a": 0.9, "tau": 5.0, "beta_r": 2.0, "ramp": 0.1}, True),
        ("ffcl", {"beta_f": 0.0}, False),
        ("ffcl", {"fusion": "off"}, False),
        ("ckd_mkt", {"beta": 0.7, "w_rel": 0.9, "beta1": 5.0, "beta2": 2.0, "gamma": 0.0}, True),
        ("ckd_mkt", {"first": 0.5}, False),
        ("kdcl", {"ensemble": "best"}, False),
        ("one", {"ramp": 0.9}, True),
    ],
)
def test_what_trials_that_share_may_differ_in(name: str, change: dict[str, Any], shared: bool) -> None:
    assert (structure(of_system(name)) == structure(of_system(name, **change))) == shared


# ---- costs


class Counted(Coarse):
    """Counts its calls, those of its copies, too, by whether they learn."""

    calls: ClassVar[Counter[str]] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        Counted.calls["frozen" if frozen else "train" if self.training else "eval"] += 1
        return super().forward(x)


class CountedFamily(CoarseFamily):
    def build(self, spec: Mapping[str, Any], input_shape: tuple[int, ...], classes: int) -> nn.Module:
        return Counted()


@pytest.mark.parametrize(
    ("name", "fields"), [*SYSTEM.items(), ("ckd_mkt", {"first": 0.0, "gamma": 0.0}), ("ckd_mkt", {"beta": 0.0})]
)
def test_passes_are_what_costs_are_reckoned_from(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    its_core = core(tmp_path, images(60))
    of = recipe(name_of(CountedFamily()), peers={"system": name, "count": 1, **fields})
    run = its_core.new(of, 0, its_core.setting)
    Counted.calls.clear()
    with its_core.setting.on_its_threads():
        train_epoch([run], its_core.rows, its_core.teaching, its_core.task, 3)
    each, asked = 2 * steps(len(its_core.rows), 16), of_peers(of.peers)
    assert Counted.calls["train"] == (1 + asked.student) * each and Counted.calls["frozen"] == asked.frozen * each
    assert Counted.calls["eval"] == 1, "the student alone is validated"
