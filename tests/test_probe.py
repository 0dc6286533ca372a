"""Measured limits, as they are written and as they are measured."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import core, order, recipe

from autokd.constraints import Cost, parse_limits
from autokd.core.device import Setting
from autokd.core.latency import latency_ms, probed_latency
from autokd.errors import ConstraintError, Infeasible
from autokd.probe import Probe, parse_probe

ANY = Probe()


@pytest.mark.parametrize(
    "written, probe",
    [
        (5, Probe(5.0)),
        ("2.5", Probe(2.5)),
        ("2.5 ms", Probe(2.5)),
        ("5 for 8 rows on 2 threads", Probe(5.0, 8, 2)),
        ("5ms for 1 row", Probe(5.0)),
        ("0.5 on 4 threads", Probe(0.5, 1, 4)),
    ],
)
def test_limits_on_latency_are_read(written: object, probe: Probe) -> None:
    assert parse_probe({"latency_ms": written}, ()) == probe
    assert parse_limits({"latency_ms": written}, Cost(1, 1)).set == {}


def test_latency_is_measured_only_where_it_matters() -> None:
    assert parse_probe(None, ("accuracy",)) is None and parse_probe({"params": 5}, ("accuracy", "params")) is None
    assert parse_probe(None, ("accuracy", "latency_ms")) == Probe()
    assert str(Probe(5.0, 8, 1)) == "at most 5 ms for 8 rows on 1 thread"


@pytest.mark.parametrize(
    "written", ["", "fast", "-1", 0, "5 for 0 rows", True, [5], "5 s", "1e3", float("nan"), "9" * 400]
)
def test_other_limits_on_latency_give_one_clear_line(written: Any) -> None:
    with pytest.raises(ConstraintError, match="constraint 'latency_ms' must (be milliseconds|name 1 row)") as caught:
        parse_probe({"latency_ms": written}, ())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_a_deeper_network_takes_longer() -> None:
    short, long = (torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(n)]) for n in (2, 60))
    assert latency_ms(long, (64,), Probe(), Setting()) > 3 * latency_ms(short, (64,), Probe(), Setting()) > 0
    assert not long.training


def test_a_measurement_is_kept_for_its_architecture_and_probe(tmp_path: Path) -> None:
    built = []

    def build() -> torch.nn.Module:
        built.append(1)
        return torch.nn.Linear(4, 2)

    def measure(architecture: str = "a", probe: Probe = ANY) -> float:
        return probed_latency(architecture, build, (4,), probe, Setting(), tmp_path / "probes")

    first = measure()
    assert measure() == first and measure(probe=Probe(5.0)) == first and len(built) == 1, "the limit changes nothing"
    measure("b"), measure(probe=Probe(rows=4))
    assert len(built) == 3
    for path in (tmp_path / "probes").iterdir():
        path.write_text("torn{")
    assert measure() > 0 and len(built) == 4


def test_the_core_probes_before_the_first_epoch(tmp_path: Path) -> None:
    with_probe = core(tmp_path).advance(order(recipe(), probe=Probe(1000.0)))
    assert with_probe.latency_ms is not None and 0 < with_probe.latency_ms < 1000
    (kept,) = (tmp_path / "probes").glob("*.json")
    assert json.loads(kept.read_text())["latency_ms"] == with_probe.latency_ms
    (tmp_path / "b").mkdir()
    without = core(tmp_path / "b").advance(order(recipe()))
    assert without.latency_ms is None and without.value == with_probe.value, "probing changes no training"


def test_the_core_does_not_train_what_is_too_slow(tmp_path: Path) -> None:
    with pytest.raises(
        Infeasible, match="resnet answers in .* ms, wanted at most 1e-06 ms for 1 row on 1 thread"
    ) as caught:
        core(tmp_path).advance(order(recipe(), probe=Probe(1e-6)))
    assert not list(tmp_path.glob("*.safetensors"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.latency_ms, again.reason) == (Infeasible, caught.value.latency_ms, "infeasible")
