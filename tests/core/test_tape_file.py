"""Segments of the tape: whole or refused, streamed in, mapped out, and readable by anything that reads safetensors."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autokd.core.tape_file import DTYPES, FORMAT, Field, Writer, format_of, open_segment, size_of, write
from autokd.errors import TapeError

FIELDS = {
    "images": Field(torch.uint8, (3, 5, 5)),
    "logits": Field(torch.float16, (7,)),
    "target": Field(torch.int64, ()),
    "fired": Field(torch.bool, (3,)),
}
META = {"epoch": 3, "teacher": "é", "nested": {"list": [1, None, 0.5]}}
ROWS = 9


def rows_of(fields: dict[str, Field], rows: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 2 if field.dtype == torch.bool else 100, (rows, *field.shape), generator=random).to(
            field.dtype
        )
        for name, field in fields.items()
    }


def cut(whole: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    rows = len(next(iter(whole.values())))
    for start in range(0, rows, size):
        yield {name: tensor[start : start + size] for name, tensor in whole.items()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int, byte: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(place)
        file.write(bytes([byte]))


@pytest.fixture
def whole() -> dict[str, Tensor]:
    return rows_of(FIELDS, ROWS)


@pytest.fixture
def path(tmp_path: Path, whole: dict[str, Tensor]) -> Path:
    write(tmp_path / "a" / "s.safetensors", ROWS, FIELDS, META, cut(whole, 4))
    return tmp_path / "a" / "s.safetensors"


# ---- what is written is read


def test_what_is_written_is_read(path: Path, whole: dict[str, Tensor]) -> None:
    segment = open_segment(path)
    assert (segment.rows, segment.meta) == (ROWS, META) and segment.fields.keys() == FIELDS.keys()
    for name, tensor in segment.fields.items():
        assert tensor.dtype == FIELDS[name].dtype and torch.equal(tensor, whole[name])
    assert names_in(path.parent) == ["s.safetensors"] and path.stat().st_size == size_of(ROWS, FIELDS, META)


def test_it_is_a_safetensors_file(path: Path, whole: dict[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(FIELDS)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in whole.items())
        assert json.loads(file.metadata()["meta"]) == META


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.dictionaries(
        st.sampled_from(["a", "b", "logits", "stages.0", "Z9_x"]),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
    ),
    rows=st.integers(1, 20),
    size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_any_fields_go_round(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[torch.dtype, list[int]]],
    rows: int,
    size: int,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("round") / "s.safetensors"
    fields = {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
    given_rows = rows_of(fields, rows, seed)
    write(path, rows, fields, {"seed": seed}, cut(given_rows, size))
    segment = open_segment(path)
    assert segment.rows == rows and segment.fields.keys() == fields.keys()
    for name, tensor in segment.fields.items():
        assert (tensor.dtype, tensor.shape) == (given_rows[name].dtype, given_rows[name].shape)
        assert tensor.untyped_storage().nbytes() == 0 or tensor.data_ptr() % tensor.dtype.itemsize == 0
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), given_rows[name].reshape(-1).view(torch.uint8))
    with safe_open(path, framework="pt") as file:  # the reference reader accepts the layout
        assert all(tuple(file.get_slice(name).get_shape()) == tuple(given_rows[name].shape) for name in fields)


def test_not_a_number_and_infinity_are_kept_bit_for_bit(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 6e-8]).half()
    write(tmp_path / "s", 5, {"x": Field(torch.float16, ())}, {}, [{"x": odd}])
    assert torch.equal(open_segment(tmp_path / "s").fields["x"].view(torch.int16), odd.view(torch.int16))


def test_rows_need_not_be_contiguous_nor_free_of_gradients(tmp_path: Path) -> None:
    wide = torch.arange(24.0).reshape(4, 6).requires_grad_()
    field = {"x": Field(torch.float32, (3,))}
    write(tmp_path / "s", 4, field, {}, [{"x": wide[:, ::2]}, {"x": wide[:0, ::2]}])
    assert torch.equal(open_segment(tmp_path / "s").fields["x"], wide[:, ::2].detach())


def test_writing_into_a_map_changes_no_file(path: Path, whole: dict[str, Tensor]) -> None:
    segment = open_segment(path)
    segment.fields["logits"].zero_()
    assert torch.equal(open_segment(path).fields["logits"], whole["logits"])


def test_a_deleted_file_stays_readable(path: Path, whole: dict[str, Tensor]) -> None:
    segment = open_segment(path)
    path.unlink()
    assert torch.equal(segment.fields["images"], whole["images"])
    fields = segment.fields
    del segment
    assert torch.equal(fields["logits"], whole["logits"])


# ---- what is damaged is refused


def test_every_flipped_byte_is_found(path: Path) -> None:
    sound = path.read_bytes()
    for place in range(len(sound)):
        flip(path, place, sound[place] ^ 0x55)
        with pytest.raises(TapeError, match="s.safetensors .*recorded again"):
            open_segment(path)
        flip(path, place, sound[place])
    open_segment(path)


def test_padding_is_covered_too(path: Path) -> None:
    sound = path.read_bytes()
    end = 8 + int.from_bytes(sound[:8], "little")
    assert sound[end - 1 : end] == b" ", "choose META so that the header is padded"
    path.write_bytes(sound[: end - 1] + b"\n" + sound[end:])
    with pytest.raises(TapeError, match="checksum of its header"):
        open_segment(path)


def test_every_truncation_is_found(path: Path) -> None:
    sound = path.read_bytes()
    for size in {*range(0, len(sound), 11), len(sound) - 1}:
        path.write_bytes(sound[:size])
        with pytest.raises(TapeError):
            open_segment(path)
    path.write_bytes(sound + b"\0")
    with pytest.raises(TapeError):
        open_segment(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 a pickle", b"\x00" * 64, b"\x02" + b"\x00" * 7 + b"[]", b"\x04" + b"\x00" * 7 + b"null"],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(TapeError, match="x .*recorded again"):
        open_segment(tmp_path / "x")
    assert format_of(tmp_path / "x") is None


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"autokd_tape": "x"}):
        save_file({"logits": torch.zeros(3, 2)}, tmp_path / "x", metadata=metadata)
        with pytest.raises(TapeError, match="no segment of a tape"):
            open_segment(tmp_path / "x")


def test_another_format_is_refused_and_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Tensor]
) -> None:
    assert format_of(path) == FORMAT
    monkeypatch.setattr("autokd.core.tape_file.FORMAT", FORMAT + 1)
    with pytest.raises(TapeError, match=f"of format {FORMAT}, this version of autokd reads {FORMAT + 1}"):
        open_segment(path)
    write(path, ROWS, FIELDS, META, [whole])
    assert format_of(path) == FORMAT + 1


def test_what_is_no_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_segment(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        open_segment(tmp_path)
    assert format_of(tmp_path / "none") is None


# ---- writing that fails leaves nothing


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2)}, "must hold"),
        ({}, "must hold"),
        ({"x": torch.zeros(2, 4)}, "rows of 'x'"),
        ({"x": torch.zeros(2, 3).double()}, "rows of 'x'"),
        ({"x": torch.zeros(2, 3, device="meta")}, "on the CPU"),
        ({"x": torch.tensor(1.0)}, "rows of 'x'"),
        ({"x": torch.zeros(5, 3)}, "5.* more"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, block: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "s", 4, {"x": Field(torch.float32, (3,))}, {}, [block])
    assert names_in(tmp_path) == []


def test_fields_of_unequal_length_are_refused(tmp_path: Path) -> None:
    fields = {"x": Field(torch.float32, ()), "y": Field(torch.float32, ())}
    with pytest.raises(ValueError, match="1, 2"):
        write(tmp_path / "s", 4, fields, {}, [{"x": torch.zeros(2), "y": torch.zeros(1)}])


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 rows was given 3"):
        write(tmp_path / "s", 4, {"x": Field(torch.float32, ())}, {}, [{"x": torch.zeros(3)}])
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (0, {"x": Field(torch.float32, ())}),
        (1, {}),
        (1, {"a+b": Field(torch.float32, ())}),
        (1, {"__metadata__": Field(torch.float32, ())}),
        (1, {"x": Field(torch.complex64, ())}),
    ],
)
def test_plans_that_cannot_be_written_are_refused(tmp_path: Path, rows: int, fields: dict[str, Field]) -> None:
    with pytest.raises(ValueError):
        write(tmp_path / "s", rows, fields, {}, [])
    with pytest.raises(ValueError):
        size_of(rows, fields, {})
    assert names_in(tmp_path) == []


def test_an_exception_of_whoever_computes_leaves_the_old_file(path: Path, whole: dict[str, Tensor]) -> None:
    def blocks() -> Iterator[dict[str, Tensor]]:
        yield {name: tensor[:2] for name, tensor in whole.items()}
        assert any(name.endswith(".tmp") for name in names_in(path.parent))
        raise KeyboardInterrupt

    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(path, ROWS, FIELDS, META, blocks())
    assert path.read_bytes() == before and names_in(path.parent) == [path.name]


FULL = """
import resource, sys, torch
from pathlib import Path
from autokd.core.tape_file import Field, write
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
def blocks():
    print("computing")
    yield {"x": torch.zeros(100_000, dtype=torch.uint8)}
try:
    write(Path(sys.argv[1]), 100_000, {"x": Field(torch.uint8, ())}, {}, blocks())
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_shows_before_anything_is_computed(path: Path) -> None:
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=50)
    assert (done.stdout.strip(), done.stderr) == ("File too large", "")
    assert path.read_bytes() == before and names_in(path.parent) == [path.name]


def test_so_it_is_in_the_middle_where_space_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autokd.core.tape_file._reserve", lambda descriptor, size: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(
                tmp_path / "s",
                100_000,
                {"x": Field(torch.uint8, ())},
                {},
                [{"x": torch.zeros(100_000).to(torch.uint8)}],
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == []


def test_the_space_is_taken_at_once(tmp_path: Path) -> None:
    with Writer(tmp_path / "s", 1 << 20, {"x": Field(torch.uint8, ())}, {}):
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_blocks * 512 >= 1 << 20
    assert names_in(tmp_path) == []


def test_where_space_cannot_be_reserved_segments_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Tensor]
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr("os.posix_fallocate", refuse, raising=False)
    write(tmp_path / "s", ROWS, FIELDS, META, [whole])
    assert torch.equal(open_segment(tmp_path / "s").fields["images"], whole["images"])


# ---- memory

FRUGAL = """
import sys, torch
from pathlib import Path
from autokd.core.tape_file import Field, open_segment, write
torch.set_num_threads(1)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
path, block, field = Path(sys.argv[1]), torch.ones(1 << 20, dtype=torch.uint8), {"x": Field(torch.uint8, (1 << 10,))}
blocks = lambda count: ({"x": block.clone().view(1 << 10, 1 << 10)} for _ in range(count))
write(path, 1 << 10, field, {}, blocks(1))
open_segment(path)
before = resident()
write(path, 64 << 10, field, {}, blocks(64))
written = resident() - before
segment = open_segment(path)
opened = resident() - before
segment.fields["x"][:: 1 << 10].sum()
read = resident() - before
print(written >> 20, opened >> 20, read >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_segment_is_never_in_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRUGAL, str(tmp_path / "s")], capture_output=True, text=True, timeout=50, check=True
    )
    written, opened, read = map(int, done.stdout.split())
    assert written < 16 and opened < 16 and read < 32, done.stdout  # MB, of 64
