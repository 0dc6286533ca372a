"""Sizes of files, as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

from autokd.errors import InputError

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
FACTORS = {name.lower(): size for name, size in (UNITS | BINARY).items()}
MOST = 2**63 - 1  # bytes; no file system counts further

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]+)")


def parse_size(value: str | int) -> int:
    """Bytes of "10GB", "1.5 GiB", "500 MB", or of a whole number of bytes. Raises InputError.

    >>> parse_size("1.5 kB"), parse_size("2 MiB"), parse_size(4096)
    (1500, 2097152, 4096)
    """
    found = _bytes_of(value)
    if found is None or not 0 <= found <= MOST:
        shown = repr(value) if isinstance(value, str | float) else type(value).__name__
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise InputError(
            f"a size must be a number with a unit, or whole bytes, got {shown}; write for example '10GB' or '500 MB'"
        )
    return int(found)


def size_words(count: int) -> str:
    """Bytes as people read them: 71_234 -> "71.2 kB"."""
    fitting = [unit for unit, size in UNITS.items() if count >= size] or ["B"]
    scaled = count / UNITS[fitting[-1]]
    return f"{scaled:.0f} {fitting[-1]}" if fitting[-1] == "B" or scaled >= 99.95 else f"{scaled:.1f} {fitting[-1]}"


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def _bytes_of(value: str | int) -> Decimal | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    named = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if named is None or named[2] not in FACTORS:
        return None
    return Decimal(named[1]) * FACTORS[named[2]]
