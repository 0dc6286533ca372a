"""What of a teacher is worth recording, by its size."""

from __future__ import annotations

import json

import pytest

from autokd.core.headed import HEADS, with_heads
from autokd.core.payload import FIELDS, Payload, TapePlan, numbers, plan_payload
from autokd.protocols import Shapes

SHAPES = with_heads(Shapes(classes=100, embedding=256, stages=((64, 32, 32), (128, 16, 16), (256, 8, 8))), HEADS)
BYTES = {
    "logits": 200,
    "embedding": 512,
    "attention": 2 * (1024 + 256 + 64),
    "aux.stage": 2 * 2 * 100,
    "aux.joint": 2 * 3 * 400,
    "aux.projection": 512,
    "aux.pooled": 2 * (64 + 128 + 256),
    "stages": 2 * (64 * 1024 + 128 * 256 + 256 * 64),
}
ROWS, EPOCHS = 50_000, 240


def planned(*wanted: str, limit: float, shapes: Shapes = SHAPES) -> Payload:
    return plan_payload(shapes, wanted, ROWS, EPOCHS, int(limit))


def test_numbers_of_each_field() -> None:
    assert {field: 2 * numbers(SHAPES, field) for field in FIELDS} == BYTES


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_recorded_if_all_epochs_fit_into_half_of_the_limit(field: str) -> None:
    needed = BYTES[field] * ROWS * EPOCHS
    fits = planned(field, limit=2 * needed)
    assert fits.fields == {"logits", field} and fits.notes == ()
    assert fits.bytes_per_row == sum(BYTES[each] for each in fits.fields)
    too_large = planned(field, limit=2 * needed - 1)
    assert field not in too_large.fields and len(too_large.notes) == 1
    assert too_large.bytes_per_row == sum(BYTES[each] for each in too_large.fields)


def test_a_field_that_does_not_fit_is_told_with_its_size_and_the_remedy() -> None:
    (note,) = planned("logits", "stages", limit=20e9).notes
    assert note.startswith("stages are not recorded but computed live: 229,376 bytes a row, 50,000 rows and 240 epochs")
    assert "2752.5 GB" in note and "may hold 20.0 GB" in note and note.endswith("raise tape_limit") and "\n" not in note


def test_attention_stays_where_stages_are_too_large() -> None:
    found = planned("logits", "attention", "stages", "embedding", limit=70e9)
    assert found.fields == {"logits", "attention", "embedding"} and [n.split()[0] for n in found.notes] == ["stages"]


def test_the_smallest_goes_on_where_a_larger_one_does_not_fit() -> None:
    found = planned(*FIELDS, limit=6e9)
    assert found.fields == {"logits"} and [note.split()[0] for note in found.notes] == [
        "embedding",
        "attention",
        "aux.stage",
        "aux.joint",
        "aux.projection",
        "aux.pooled",
        "stages",
    ]


def test_nothing_is_recorded_without_the_logits_which_every_trial_reads() -> None:
    wide = Shapes(classes=10_000, embedding=16)
    found = planned("embedding", limit=50e9, shapes=wide)
    assert found == Payload(frozenset(), 0, found.notes) and found.notes[0].startswith("logits are not recorded")


def test_what_a_network_does_not_have_is_neither_recorded_nor_told() -> None:
    found = planned(*FIELDS, limit=1e12, shapes=Shapes(classes=10, embedding=0))
    assert found == Payload(frozenset({"logits"}), 20)
    assert planned(limit=1e12).fields == {"logits"}, "the logits come always"
    assert planned(*FIELDS, limit=0) == Payload(frozenset(), 0, planned(*FIELDS, limit=0).notes)


def test_a_plan_crosses_json() -> None:
    plan = TapePlan("/some/folder", 10**10, frozenset({"logits", "stages"}), "mine")
    assert TapePlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
