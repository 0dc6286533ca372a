"""Budgets: what people write, and that what is printed reads back."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autokd.budget import Budget
from autokd.errors import BudgetError

KINDS = st.sampled_from(["seconds", "trials", "epochs"])


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("90s", "seconds", 90),
        ("30m", "seconds", 1800),
        ("1h30m", "seconds", 5400),
        ("1.5h", "seconds", 5400),
        ("2d", "seconds", 172800),
        ("1d 2h 3m 4s", "seconds", 93784),
        (" 20 Minutes ", "seconds", 1200),
        (".5s", "seconds", 0.5),
        ("1 min 30 sec", "seconds", 90),
        ("200 trials", "trials", 200),
        ("1 trial", "trials", 1),
        ("5000 epochs", "epochs", 5000),
        ("5000epochs", "epochs", 5000),
    ],
)
def test_reads_what_people_write(text: str, kind: str, amount: float) -> None:
    assert Budget.parse(text) == Budget(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget("seconds", 90), "1m30s"),
        (Budget("seconds", 172800), "2d"),
        (Budget("seconds", 5400.5), "5400.5s"),
        (Budget("seconds", 1e-7), "0.0000001s"),
        (Budget("trials", 1), "1 trial"),
        (Budget("epochs", 5000), "5000 epochs"),
    ],
)
def test_prints_nicely(budget: Budget, text: str) -> None:
    assert str(budget) == text


@given(
    kind=KINDS, whole=st.integers(1, 10**300), seconds=st.floats(min_value=0, exclude_min=True, allow_infinity=False)
)
def test_round_trips_through_text_and_json(kind: str, whole: int, seconds: float) -> None:
    budget = Budget("seconds", seconds) if kind == "seconds" else Budget(kind, whole)  # type: ignore[arg-type]
    assert Budget.parse(str(budget)) == budget
    assert Budget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


@given(st.integers(1, 10**9))
def test_whole_seconds_print_in_units_that_add_up(seconds: int) -> None:
    assert Budget.parse(str(Budget("seconds", seconds))).amount == seconds


def test_takes_timedelta_and_itself() -> None:
    assert Budget.parse(timedelta(minutes=2)) == Budget("seconds", 120)
    budget = Budget("trials", 3)
    assert Budget.parse(budget) is budget


@given(st.text(max_size=30))
def test_any_text_is_a_budget_or_one_error_line(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError as error:
        assert "\n" not in str(error)
    else:
        assert budget.amount > 0


@pytest.mark.parametrize("value", [90, 90.0, "90", "1.5"])
def test_a_bare_number_is_refused_with_a_remedy(value: float | str) -> None:
    with pytest.raises(BudgetError, match=r"must have a unit, got '?[0-9.]+'?; write for example '90s'"):
        Budget.parse(value)
