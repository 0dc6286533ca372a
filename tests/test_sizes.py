"""Sizes as people write and read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autokd.errors import InputError
from autokd.sizes import BINARY, MOST, UNITS, existing, parse_size, size_words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10_000_000_000),
        ("500 MB", 500_000_000),
        ("  1.5 gb ", 1_500_000_000),
        (".5kB", 500),
        ("2 GiB", 2 * 2**30),
        ("0 B", 0),
        ("1.9999 B", 1),
        (4096, 4096),
        (0, 0),
        ("0.1 TB", 100_000_000_000),  # exactly: no float in between
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS | BINARY)), st.sampled_from(["", " ", "  "]))
def test_whole_sizes_are_exact(count: int, unit: str, space: str) -> None:
    assert (
        parse_size(f"{count}{space}{unit}")
        == parse_size(f"{count}{space}{unit.upper()}")
        == count * (UNITS | BINARY)[unit]
    )


@given(st.integers(0, 10**15))
def test_words_parse_back_to_within_their_digits(size: int) -> None:
    assert parse_size(size_words(size)) == pytest.approx(size, rel=0.051)


WRONG: list[Any] = ["", "GB", "10", "10 G B", "-1GB", "1e3 GB", "1,5GB", "nan GB", "infGB", "10 Gbit", "٣GB", "1GB\n2GB",
         "9" * 400 + "TB", "9" * 5000 + "B", "GB" * 500, -1, 1.5, float("nan"), True, None, [], 10**30, 10**5000, b"1GB"]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: str(type(value).__name__))
def test_wrong_sizes_are_told_in_one_line(wrong: Any) -> None:
    with pytest.raises(InputError) as told:
        parse_size(wrong)
    assert "write for example '10GB'" in str(told.value) and "\n" not in str(told.value) and len(str(told.value)) < 200


@given(st.text() | st.integers() | st.floats())
def test_anything_is_a_size_or_an_input_error(value: Any) -> None:
    try:
        assert 0 <= parse_size(value) <= MOST
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (71_234, "71.2 kB"),
        (5 * 10**9, "5.0 GB"),
        (314 * 10**12, "314 TB"),
    ],
)
def test_sizes_in_words(size: int, said: str) -> None:
    assert size_words(size) == said


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert existing(tmp_path) == tmp_path and existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path / "file" / "b") == tmp_path and existing(Path("not/there")).is_dir()
