"""Every registered system of peers passes the same battery."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import (
    CASES,
    built,
    drawn,
    everything,
    number,
    numbers,
    reached,
    rows_of,
    shapes,
    total,
    with_gradient,
)

from autokd.errors import RecipeError
from autokd.peers import SYSTEMS
from autokd.peers.base import PeerSystem
from autokd.protocols import Outputs

DOCS = Path(__file__).parents[2] / "docs"
METHODS = "\n".join(
    path.read_text(encoding="utf-8") for path in (DOCS / "methods.md", *(DOCS / "methods").glob("*.md"))
)
LABELS = [0, 1, 2, 3, 4, 0]
SAID_BY_OTHERS = {  # parts in which networks compare themselves with others of the same kind: nothing to learn from an equal
    "dml": {"peers"},
    "kdcl": {"ensemble"},
    "one": {"ensemble"},
    "ffcl": {"response", "feature"},
    "ckd_mkt": {"distance", "angle", "response"},
}
EVERY = pytest.mark.parametrize("name", SYSTEMS)
CASE = pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda given: given if isinstance(given, str) else "")


def test_the_battery_knows_every_system() -> None:
    assert {name for name, _ in CASES} == set(SYSTEMS) == set(SAID_BY_OTHERS)


@EVERY
class TestDeclarations:
    def test_constructor_takes_its_fields_with_their_defaults_by_keyword(self, name: str) -> None:
        system = SYSTEMS[name]
        if system.__init__ is PeerSystem.__init__:
            assert not system.fields
            return
        taken = inspect.signature(system).parameters
        assert {field: rule.default for field, rule in system.fields.items()} == {
            field: parameter.default for field, parameter in taken.items()
        }
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in taken.values())
        assert all(rule.broken_by(rule.default) is None and rule.about for rule in system.fields.values())

    def test_fields_and_needs_are_sane(self, name: str) -> None:
        system = SYSTEMS[name]
        assert not {"count", "system", "weight", "temperature"} & set(system.fields)
        assert "logits" in system.needs <= {"logits", "embedding", "stages"}
        assert system.dials <= {field for field, rule in system.fields.items() if rule.kind == "float"}

    def test_is_documented(self, name: str) -> None:
        assert re.search(rf"^### `{name}`$", METHODS, re.MULTILINE)

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_two_three_and_four_networks(self, name: str, count: int) -> None:
        outputs = drawn(count)
        mutual = built(name, outputs)(outputs, rows_of(LABELS), 2.0)
        assert len(mutual.own) == count and total(everything(mutual)).isfinite()


@CASE
class TestEveryLoss:
    def test_parts_are_named_finite_scalars(self, name: str, fields: dict[str, Any]) -> None:
        outputs = drawn(3)
        mutual = built(name, outputs, **fields)(outputs, rows_of(LABELS), 2.0)
        assert len({tuple(parts) for parts in mutual.own}) == 1, "of all networks the same"
        for part in everything(mutual).values():
            assert part.shape == () and part.dtype == torch.float32 and 0 <= number(part) < 1e3

    def test_nothing_is_learned_from_equal_networks(self, name: str, fields: dict[str, Any]) -> None:
        """To rounding: a loss of softened logits that differ by 1e-7 is far below 1e-9."""
        outputs, leaves = with_gradient(drawn(1, dtype=torch.float64) * 3)
        mutual = built(name, outputs, **fields)(outputs, rows_of(LABELS, torch.float64), 3.0)
        parts = {key: part for key, part in everything(mutual).items() if key.split(".")[-1] in SAID_BY_OTHERS[name]}
        assert parts
        assert numbers(parts) == pytest.approx(dict.fromkeys(parts, 0.0), abs=1e-12)
        flat = [leaf for own in leaves for leaf in own]
        found = torch.autograd.grad(total(parts), flat, allow_unused=True, materialize_grads=True)
        assert max(float(gradient.abs().max()) for gradient in found) < 1e-9

    def test_what_was_taught_gets_no_gradient(self, name: str, fields: dict[str, Any]) -> None:
        count = 3
        outputs, leaves = with_gradient(drawn(count))
        mutual = built(name, outputs, **fields)(outputs, rows_of(LABELS), 2.0)
        for learner, parts in enumerate(mutual.own):
            for part in parts.values():
                assert reached(part, leaves) == [network == learner for network in range(count)]
        for part in mutual.shared.values():
            assert any(reached(part, leaves))

    def test_needs_say_what_is_read(self, name: str, fields: dict[str, Any]) -> None:
        outputs, leaves = with_gradient(drawn(3))
        loss = total(everything(built(name, outputs, **fields)(outputs, rows_of(LABELS), 2.0)))
        read: set[str] = set()
        for own in leaves:
            found = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
            kinds = zip(["logits", "embedding", *["stages"] * 3], found, strict=True)
            read |= {kind for kind, gradient in kinds if gradient is not None}
        needs = SYSTEMS[name].needs
        assert read == needs if not fields else read <= needs

    def test_own_modules_learn_unless_they_are_frozen(self, name: str, fields: dict[str, Any]) -> None:
        outputs, _ = with_gradient(drawn(3))
        system = built(name, outputs, **fields)
        total(everything(system(outputs, rows_of(LABELS), 2.0))).backward()
        for parameter in system.parameters():
            learned = parameter.grad is not None and bool(parameter.grad.any())
            assert learned == parameter.requires_grad

    def test_order_of_rows_does_not_matter(self, name: str, fields: dict[str, Any]) -> None:
        outputs = drawn(3, dtype=torch.float64)
        system, batch = built(name, outputs, **fields), rows_of(LABELS, torch.float64)
        order = torch.tensor([4, 2, 0, 5, 3, 1])
        permuted = [each.map(lambda part: part[order]) for each in outputs]
        other = type(batch)(batch.x[order], batch.y[order], batch.index[order], batch.view[order], batch.index)
        straight = numbers(everything(system(outputs, batch, 2.0)))
        assert numbers(everything(system(permuted, other, 2.0))) == pytest.approx(straight, rel=1e-9)

    def test_dials_may_be_scalars_on_a_device(self, name: str, fields: dict[str, Any]) -> None:
        outputs, batch = drawn(3, dtype=torch.float64), rows_of(LABELS, torch.float64)
        system = built(name, outputs, **fields)
        plain = numbers(everything(system(outputs, batch, 2.0)))
        for dial in system.dials:
            setattr(system, dial, torch.tensor(getattr(system, dial), dtype=torch.float64))
        found = numbers(everything(system(outputs, batch, torch.tensor(2.0, dtype=torch.float64))))
        assert found == pytest.approx(plain, rel=1e-12)

    @pytest.mark.parametrize("scale", [0.0, 1e-4, 50.0, 2e4])  # the largest number of half precision is 6.5e4
    def test_extreme_values_stay_finite(self, name: str, fields: dict[str, Any], scale: float) -> None:
        outputs, leaves = with_gradient(drawn(3))
        loud = [
            Outputs(
                max(50.0, scale) * each.logits.sign(), scale * each.embedding, tuple(scale * s for s in each.stages)
            )  # type: ignore[operator]
            for each in outputs
        ]
        parts = everything(built(name, outputs, **fields)(loud, rows_of(LABELS), 0.5))
        assert all(bool(part.isfinite()) for part in parts.values())
        flat = [leaf for own in leaves for leaf in own]
        found = torch.autograd.grad(total(parts), flat, allow_unused=True, materialize_grads=True)
        assert all(bool(gradient.isfinite().all()) for gradient in found)

    @pytest.mark.parametrize(("n", "classes"), [(1, 5), (1, 2), (4, 2), (2, 3), (70, 3)])
    def test_small_and_large_batches_and_few_classes(
        self, name: str, fields: dict[str, Any], n: int, classes: int
    ) -> None:
        outputs, leaves = with_gradient(drawn(3, n=n, classes=classes))
        parts = everything(built(name, outputs, **fields)(outputs, rows_of([k % classes for k in range(n)]), 2.0))
        flat = [leaf for own in leaves for leaf in own]
        found = torch.autograd.grad(total(parts), flat, allow_unused=True, materialize_grads=True)
        assert all(bool(tensor.isfinite().all()) for tensor in (*parts.values(), *found))

    def test_state_survives_a_round_trip(self, name: str, fields: dict[str, Any]) -> None:
        outputs, batch = drawn(3), rows_of(LABELS)
        first, second = built(name, outputs, **fields), built(name, outputs, **fields)
        with torch.no_grad():
            for tensor in first.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.25)
        second.load_state_dict(first.state_dict())
        assert numbers(everything(first(outputs, batch, 2.0))) == numbers(everything(second(outputs, batch, 2.0)))


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if "stages" in system.needs])
def test_networks_without_stage_maps_are_refused(name: str) -> None:
    outputs = [Outputs(each.logits, each.embedding) for each in drawn(2)]
    with pytest.raises(RecipeError, match=rf"'{name}' reads stage maps, the student has 0 stages; use"):
        SYSTEMS[name]().build([shapes(each) for each in outputs])
