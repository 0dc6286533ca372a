"""One segment of the tape: named arrays over the same samples, written as a stream, checked, and read as a memory map.

The file is a safetensors file. Every byte of it is covered: each field has a SHA-256 in the header, and the header one of its
own. A file appears under its name only when it is whole, so that whoever opens one never sees a part.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from autokd.errors import TapeError

FORMAT = 1  # of segments; files of another one are not read
TEMPORARY = ".tmp"  # ends the name of a file that is being written
ALIGN = 64  # bytes; the data begin at a multiple, the widest fields first, so that every number is aligned
BLOCK = 1 << 20  # bytes read at a time for a checksum: a file is never in memory
MOST_HEADER = 100_000_000  # bytes; safetensors reads no longer ones
UNKNOWN = "0" * 64  # stands where a checksum will be: headers have one length from the beginning
FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Field(NamedTuple):
    """What one row of an array is: () for a number, (C,) for logits, (3, H, W) for an image."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True, eq=False)
class Segment:
    """An opened file. `fields` are maps of it: pages are read when touched and shared by all processes of a machine.

    They stay readable when the file is deleted. Whoever writes into them changes his own process's view and no file.
    """

    rows: int
    meta: Mapping[str, Any]
    fields: Mapping[str, Tensor]  # name -> (rows, *shape)


def write(
    path: Path,
    rows: int,
    fields: Mapping[str, Field],
    meta: Mapping[str, Any],
    blocks: Iterable[Mapping[str, Tensor]],
) -> None:
    """Write a segment from consecutive rows of every field, CPU tensors of the fields' own dtypes; one block in memory at a time.

    Raises OSError, before the first block is asked for, if there is no space; ValueError for rows that do not fit. Nothing is left then.
    """
    with Writer(path, rows, fields, meta) as writer:
        for block in blocks:
            writer.add(block)
        writer.finish()


def open_segment(path: Path, check: bool = True) -> Segment:
    """Map a file after its checksums have been compared; `check=False` is for whoever has just written it.

    Raises TapeError if it is torn, foreign, of another format or not as it was written; OSError if it cannot be read at all.
    """
    with open(path, "rb", buffering=0) as file:
        header = _read_header(path, file)
        if check:
            _check_fields(path, file, header)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # not ACCESS_READ: writing must not be a crash
    whole = torch.frombuffer(mapped, dtype=torch.uint8)[header.begin :]
    fields = {
        name: whole[span.start : span.stop].view(span.field.dtype).view(header.rows, *span.field.shape)
        for name, span in header.spans.items()
    }
    return Segment(header.rows, header.meta, fields)


def format_of(path: Path) -> int | None:
    """The format a file says it has; None for one that cannot be read. Its fields are not checked."""
    try:
        with open(path, "rb", buffering=0) as file:
            return _read_format(_read_table(path, file)[0])
    except (OSError, TapeError):
        return None


def size_of(rows: int, fields: Mapping[str, Field], meta: Mapping[str, Any]) -> int:
    """Bytes the file will have."""
    _check_plan(rows, fields)
    spans = _spans(rows, fields)
    return len(_header(rows, spans, meta, {})) + _data_bytes(spans)


class Writer:
    """A segment being written, its whole space reserved. `finish` puts it in place; leaving the context earlier removes it.

    The temporary file is locked as long as its writer lives: what can be locked is a leftover of a process that was killed.
    """

    def __init__(self, path: Path, rows: int, fields: Mapping[str, Field], meta: Mapping[str, Any]) -> None:
        _check_plan(rows, fields)
        self.path, self._rows, self._fields, self._meta = path, rows, dict(fields), meta
        self._spans = _spans(rows, fields)
        self._begin = len(_header(rows, self._spans, meta, {}))
        self._sums = {name: hashlib.sha256() for name in fields}
        self._done = 0  # rows
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}{TEMPORARY}")
        self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        try:
            with suppress(OSError):  # a file system without locks: leftovers will not be recognised there
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _reserve(self._file.fileno(), self._begin + _data_bytes(self._spans))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, block: Mapping[str, Tensor]) -> None:
        """The next rows. Raises ValueError if they are not what was announced, OSError if they cannot be written."""
        count = self._checked(block)
        for name, span in self._spans.items():
            raw = block[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            self._sums[name].update(raw)
            _write_at(self._file.fileno(), raw, self._begin + span.start + self._done * span.field.row_bytes)
        self._done += count

    def finish(self) -> None:
        """Write the header and give the file its name."""
        if self._done != self._rows:
            raise ValueError(f"a segment of {self._rows} rows was given {self._done}")
        sums = {name: found.hexdigest() for name, found in self._sums.items()}
        _write_at(self._file.fileno(), memoryview(_header(self._rows, self._spans, self._meta, sums)), 0)
        self._file.close()  # a file system over a network may only now say that it is full
        os.replace(self._temporary, self.path)

    def close(self) -> None:
        """Remove what is not finished. Harmless when done twice."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink()

    def _checked(self, block: Mapping[str, Tensor]) -> int:
        """The rows of a block that fits."""
        if block.keys() != self._fields.keys():
            raise ValueError(f"a block must hold {sorted(self._fields)}, got {sorted(block)}")
        counts = {tensor.shape[:1].numel() for tensor in block.values()}
        for name, field in self._fields.items():
            tensor = block[name]
            if (tensor.dtype, tuple(tensor.shape[1:])) != field or not tensor.dim() or tensor.device.type != "cpu":
                got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
                raise ValueError(f"rows of '{name}' must be {field.dtype} {field.shape} on the CPU, got {got}")
        if len(counts) != 1 or self._done + max(counts) > self._rows:
            raise ValueError(f"a segment of {self._rows} rows holds {self._done} and was given {sorted(counts)} more")
        return counts.pop()


# ---- layout


class _Span(NamedTuple):
    """Where a field lies, counted from the end of the header."""

    field: Field
    start: int
    stop: int


class _Header(NamedTuple):
    rows: int
    meta: Mapping[str, Any]
    spans: Mapping[str, _Span]
    sums: Mapping[str, str]
    begin: int  # of the data, in the file


def _check_plan(rows: int, fields: Mapping[str, Field]) -> None:
    if rows < 1 or not fields:
        raise ValueError(f"a segment must have rows and fields, got {rows} rows and {len(fields)} fields")
    for name, field in fields.items():
        if not FIELD_NAME.fullmatch(name) or field.dtype not in DTYPE_NAMES:
            raise ValueError(f"field '{name}' of {field.dtype} cannot be recorded; known: {', '.join(DTYPES)}")


def _spans(rows: int, fields: Mapping[str, Field]) -> dict[str, _Span]:
    spans, start = {}, 0
    for name in sorted(fields, key=lambda name: (-fields[name].dtype.itemsize, name)):
        stop = start + rows * fields[name].row_bytes
        spans[name] = _Span(fields[name], start, stop)
        start = stop
    return spans


def _data_bytes(spans: Mapping[str, _Span]) -> int:
    return max(span.stop for span in spans.values())


def _header(rows: int, spans: Mapping[str, _Span], meta: Mapping[str, Any], sums: Mapping[str, str]) -> bytes:
    """Length and table; as long without `sums` as with them. The header's own checksum is the first 64 digits of it."""
    about = {"sha256": UNKNOWN, "autokd_tape": str(FORMAT), "rows": str(rows), "meta": json.dumps(meta, sort_keys=True)}
    about |= {f"sha256.{name}": sums.get(name, UNKNOWN) for name in spans}
    arrays = {
        name: {
            "dtype": DTYPE_NAMES[span.field.dtype],
            "shape": [rows, *span.field.shape],
            "data_offsets": [span.start, span.stop],
        }
        for name, span in spans.items()
    }
    table = json.dumps({"__metadata__": about, **arrays}, separators=(",", ":")).encode()
    table += b" " * (-(8 + len(table)) % ALIGN)
    own = hashlib.sha256(table).hexdigest()
    return len(table).to_bytes(8, "little") + table.replace(UNKNOWN.encode(), own.encode(), 1)


# ---- writing


def _reserve(descriptor: int, size: int) -> None:
    """Take the whole space now: a full disk is an OSError here, and not in the middle."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
                raise
    os.ftruncate(descriptor, size)


def _write_at(descriptor: int, raw: memoryview, place: int) -> None:
    while len(raw):
        done = os.pwrite(descriptor, raw, place)
        raw, place = raw[done:], place + done


# ---- reading


def _broken(path: Path, what: str) -> TapeError:
    return TapeError(f"tape segment {path} {what}; it is removed and recorded again")


def _read_table(path: Path, file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The header as JSON and as bytes."""
    length = int.from_bytes(_read(file, 8), "little")
    if length > min(MOST_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise _broken(path, "is torn or no segment")
    raw = _read(file, length)
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        raise _broken(path, "has no readable header") from None
    if not (isinstance(table, dict) and isinstance(table.get("__metadata__"), dict)):
        raise _broken(path, "is no segment of a tape")
    return table, raw


def _read_format(table: Mapping[str, Any]) -> int | None:
    said = table["__metadata__"].get("autokd_tape", "")
    return int(said) if re.fullmatch("[0-9]{1,9}", str(said)) else None


def _read_header(path: Path, file: BinaryIO) -> _Header:
    table, raw = _read_table(path, file)
    found = _read_format(table)
    if found is None:
        raise _broken(path, "is no segment of a tape")
    if found != FORMAT:
        raise _broken(path, f"is of format {found}, this version of autokd reads {FORMAT}")
    about = table.pop("__metadata__")
    own = str(about.get("sha256"))
    if hashlib.sha256(raw.replace(own.encode(), UNKNOWN.encode(), 1)).hexdigest() != own:
        raise _broken(path, "fails the checksum of its header")
    rows, spans = int(about["rows"]), {}
    for name, array in table.items():
        spans[name] = _Span(Field(DTYPES[array["dtype"]], tuple(array["shape"][1:])), *array["data_offsets"])
    begin = 8 + len(raw)
    if os.fstat(file.fileno()).st_size != begin + _data_bytes(spans):
        raise _broken(path, "is torn")
    return _Header(rows, json.loads(about["meta"]), spans, {name: about[f"sha256.{name}"] for name in spans}, begin)


def _check_fields(path: Path, file: BinaryIO, header: _Header) -> None:
    """Read through a small buffer and not through the map, whose pages would count as this process's memory."""
    for name, span in header.spans.items():
        if _checksum(file, header.begin + span.start, header.begin + span.stop) != header.sums[name]:
            raise _broken(path, f"fails the checksum of '{name}'")


def _checksum(file: BinaryIO, start: int, stop: int) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(BLOCK, stop - start)))
    file.seek(start)
    while start < stop:
        count = file.readinto(buffer[: stop - start])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        start += count
    return digest.hexdigest()


def _read(file: BinaryIO, size: int) -> bytes:
    """An unbuffered read may return less than there is."""
    parts = []
    while size:
        part = file.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
