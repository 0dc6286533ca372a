"""Limits on students: what may be written, and what it means."""

from __future__ import annotations

import pytest

from autokd.constraints import Cost, Limits, parse_limits
from autokd.errors import ConstraintError

TEACHER = Cost(params=1_000_000, flops=80_000_000)


@pytest.mark.parametrize(
    "written, value",
    [
        (50_000, 50_000),
        (50_000.5, 50_000.5),
        ("50k", 50_000),
        (" 1.5M ", 1_500_000),
        ("2g", 2e9),
        ("700", 700),
        ("teacher/10", 100_000),
        ("teacher / 2.5", 400_000),
    ],
)
def test_limits_are_read(written: object, value: float) -> None:
    assert parse_limits({"params": written}, TEACHER) == Limits(params=value)


def test_fractions_of_the_teacher_are_of_the_same_measure() -> None:
    assert parse_limits({"flops": "teacher/8"}, TEACHER) == Limits(flops=10_000_000)


def test_without_a_word_students_have_a_tenth_of_the_parameters() -> None:
    assert parse_limits(None, TEACHER) == Limits(params=100_000)
    assert parse_limits({}, TEACHER) == Limits()


@pytest.mark.parametrize(
    "written",
    ["", "0", "50 thousand", "teacher/0", "teacher*2", "-5k", "1e3e", "teacher", 0, -1, 0.0, True, None, [], float("nan"),
     float("inf"), pytest.param(10**400, id="400 digits"), pytest.param(10**5000, id="5000 digits"), "9" * 400, "९k ९"],
)  # fmt: skip
def test_other_limits_give_one_clear_line(written: object) -> None:
    with pytest.raises(
        ConstraintError, match="constraint 'params' must be a positive number, '50k' or 'teacher/10', got"
    ) as caught:
        parse_limits({"params": written}, TEACHER)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_unknown_measures_are_named() -> None:
    with pytest.raises(ConstraintError, match="unknown constraint 'parms'; did you mean 'params'"):
        parse_limits({"parms": 5}, TEACHER)


@pytest.mark.parametrize("constraints", ["50k", 50_000, ["params"], object()])
def test_anything_but_a_mapping_is_refused(constraints: object) -> None:
    with pytest.raises(ConstraintError, match="constraints must be a mapping such as"):
        parse_limits(constraints, TEACHER)  # type: ignore[arg-type]


def test_all_limits_must_hold() -> None:
    limits = Limits(params=10, flops=100)
    assert limits.allow(Cost(10, 100)) and not limits.allow(Cost(11, 100)) and not limits.allow(Cost(10, 101))
    assert Limits().allow(Cost(10**12, 10**12))
    assert limits.to_dict() == {"params": 10, "flops": 100, "bytes": None, "memory": None}
    assert Limits(**limits.to_dict()) == limits
    assert not Limits(bytes=4).allow(Cost(1, 1, 5, 0)) and not Limits(memory=4).allow(Cost(1, 1, 0, 5))


@pytest.mark.parametrize("measure", ["bytes", "memory"])
@pytest.mark.parametrize(
    "written, value", [(4096, 4096), ("64 kB", 64_000), ("1.5MiB", 1.5 * 2**20), ("teacher/4", 1_000_000), ("2k", 2000)]
)
def test_sizes_have_units(measure: str, written: object, value: float) -> None:
    teacher = Cost(1_000_000, 80_000_000, 4_000_000, 4_000_000)
    assert getattr(parse_limits({measure: written}, teacher), measure) == value


def test_a_size_that_is_none_says_how_to_write_one() -> None:
    with pytest.raises(
        ConstraintError, match="constraint 'memory' must be a positive number, '64 kB' or 'teacher/10', got '3 apples'"
    ):
        parse_limits({"memory": "3 apples"}, TEACHER)
    with pytest.raises(ConstraintError, match="constraint 'params' must be"):
        parse_limits({"params": "3 kB"}, TEACHER)
