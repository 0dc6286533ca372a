"""Data that stay in a Dataset: what is found out from a sample, what is refused, and what crosses processes."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from autokd.data import Data
from autokd.errors import DataError
from autokd.items import Form, Items, Kept
from autokd.stream import AHEAD, Source, memory_of

ROWS, SHAPE = 60, (3, 8, 8)
X = np.random.default_rng(0).integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)
Y = np.arange(ROWS) % 4


class Rows(Dataset):
    """Items of arrays, which one of them may spoil."""

    def __init__(self, x=X, y=Y, targets=True, spoilt=None, spoil=None):
        self.x, self.y, self.spoilt, self.spoil = x, y, spoilt, spoil
        if targets:
            self.targets = list(y)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        item = self.x[number], int(self.y[number])
        return self.spoil(*item) if number == self.spoilt else item


class Mirrored(Rows):
    """With a random transform of its own, drawn from one of the usual generators."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def __getitem__(self, number):
        x, y = super().__getitem__(number)
        return (x[:, :, ::-1] if self.draw() < 0.5 else x), y


def stream(train=None, **more):
    return Data.stream(Rows() if train is None else train, **{"memory": "10MB", **more})


def numbers_of(x):
    """Which rows of X these are."""
    return [int(np.flatnonzero((row == X).all((1, 2, 3)))[0]) for row in x]


# ---- what comes out


def test_splits_are_a_partition_and_training_rows_are_read_in_order():
    data = stream()
    train, val, test = (numbers_of(split.x[:]) for split in (data.train, data.val, data.test))
    assert (len(train), len(val), len(test)) == (48, 6, 6)
    assert sorted(train + val + test) == list(range(ROWS)) and train == sorted(train)
    for numbers, split in ((train, data.train), (val, data.val), (test, data.test)):
        assert np.array_equal(split.y[:], Y[numbers])
    assert numbers_of(stream(seed=1).val.x) != val
    assert len(stream(val_fraction=0.5).val.y) == 30
    assert sum("drawn by seed 0" in note for note in data.notes) == 2


def test_it_is_described_like_the_same_rows_in_memory():
    streamed = stream(val=Rows(X[:8], Y[:8]), test=Rows(X[8:16], Y[8:16]), class_names="abcd")
    resident = Data(X, Y, x_val=X[:8], y_val=Y[:8], x_test=X[8:16], y_test=Y[8:16], class_names="abcd")
    for name in ("classes", "class_names", "input_shape", "value_range", "flip", "pad"):
        assert getattr(streamed, name) == getattr(resident, name), name
    assert np.array_equal(streamed.mean, resident.mean) and np.array_equal(streamed.std, resident.std)
    assert streamed.train.x.dtype == "uint8" and streamed.train.x.shape == X.shape and len(streamed.train.y) == ROWS
    assert np.array_equal(streamed.val.x, resident.val.x) and np.array_equal(streamed.test.y, resident.test.y)
    assert streamed.describe()["sizes"] == resident.describe()["sizes"]
    assert streamed.deterministic and resident.deterministic and resident.source is None


@pytest.mark.parametrize(
    ("shape", "dtype", "stored", "kept"),
    [
        ((8, 9), np.uint8, (1, 8, 9), "uint8"),
        ((8, 9, 3), np.uint8, (3, 8, 9), "uint8"),
        ((3, 8, 9), np.float64, (3, 8, 9), "float32"),
        ((7,), np.float16, (7,), "float32"),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_layouts_and_types(shape, dtype, stored, kept, as_tensor):
    x = (np.random.default_rng(1).random((40, *shape)) * 255).astype(dtype)
    data = stream(Rows(torch.from_numpy(x) if as_tensor else x, Y[:40]), val=Rows(x, Y[:40]), test=Rows(x, Y[:40]))
    resident = Data(x, Y[:40], x_val=x, y_val=Y[:40], x_test=x, y_test=Y[:40])
    assert (data.input_shape, data.train.x.dtype) == (stored, kept)
    assert np.array_equal(data.train.x[:], resident.train.x) and np.array_equal(data.val.x, resident.val.x)
    assert data.value_range == resident.value_range


def test_pillow_images_and_a_tensor_dataset():
    image = pytest.importorskip("PIL.Image")
    x = X.transpose(0, 2, 3, 1)
    data = stream(Rows([image.fromarray(each) for each in x]))
    assert np.array_equal(data.train.x[:], X[numbers_of(data.train.x[:])]) and data.input_shape == SHAPE
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    assert stream(pairs, classes=4).train.y[5].shape == ()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_are_indexed_as_those_of_an_array(draw):
    data = Data.stream(Rows(), memory="10MB")
    whole = data.train.x[:]
    size = len(whole)
    key = draw.draw(
        st.integers(-size, size - 1)
        | st.slices(size)
        | st.lists(st.integers(-size, size - 1)).map(lambda chosen: np.array(chosen, dtype=np.int64))
        | st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)
    )
    assert np.array_equal(data.train.x[key], whole[key])
    assert data.train.x[key].shape == whole[key].shape


def test_rows_there_are_not_and_all_at_once():
    data = stream()
    with pytest.raises(IndexError):
        data.train.x[48]
    with pytest.raises(DataError, match="not held in memory"):
        np.asarray(data.train.x)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_positions_skip_what_is_held_out(total, draw):
    held = np.array(sorted(draw.draw(st.sets(st.integers(0, total - 1)))), dtype=np.int64)
    kept = Kept(total, held)
    left = np.delete(np.arange(total), held)
    assert np.array_equal(kept.numbers(np.arange(len(kept))), left) and len(kept) == len(left)
    assert np.array_equal(kept.of(np.arange(total)), left)


# ---- labels and classes


def test_classes_are_counted_from_targets_also_behind_a_subset():
    assert stream().classes == 4
    half = Subset(Rows(), range(1, ROWS, 2))
    assert stream(Subset(half, range(24)), memory="10MB", classes=4).classes == 4
    with pytest.raises(DataError, match="class 0 is missing"):
        stream(half)


@pytest.mark.parametrize(
    "targets",
    [None, list(Y[:-1]), [[1]] * ROWS, list(Y[::-1]), ["a"] * ROWS],
    ids=["none", "few", "2d", "other", "text"],
)
def test_classes_are_needed_where_the_dataset_does_not_tell(targets):
    dataset = Rows(targets=False)
    dataset.targets = targets
    with pytest.raises(DataError, match=r"classes= is needed.*would need classes=4"):
        stream(dataset)
    assert stream(dataset, classes=5).classes == 5
    with pytest.raises(DataError, match=r"labels must be 0 to 2, item \d+ of the training dataset has 3"):
        stream(dataset, classes=3)


# ---- random transforms


def test_random_transforms_are_found_and_do_not_change_the_fingerprint():
    for draw in (random.random, np.random.random, torch_uniform):
        torch.manual_seed(random.randrange(10**6))
        one, two = stream(Mirrored(draw)), stream(Mirrored(draw))
        assert not one.deterministic
        assert any("teacher outputs cannot be recorded" in note for note in one.notes)
        assert one.fingerprint == two.fingerprint and np.array_equal(one.val.x, two.val.x)


def torch_uniform():
    return float(torch.rand(()))


def test_looking_at_a_dataset_leaves_the_generators_where_they_were():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    stream(Mirrored(random.random))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_the_fingerprint_is_of_what_is_trained_on():
    same = stream()
    brighter = X.copy()
    brighter[17] ^= 1
    others = [stream(Rows(brighter)), stream(seed=1), stream(classes=5), stream(Rows(X[:-4], Y[:-4]))]
    assert stream().fingerprint == same.fingerprint == stream(memory="20MB", workers=0).fingerprint
    assert len({same.fingerprint, *(other.fingerprint for other in others)}) == 5


# ---- what is refused


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class NoLength(Dataset):
    def __getitem__(self, number):
        return X[number], 0


def spoilt_by(spoil, number=17, **more):
    return Rows(spoilt=number, spoil=spoil, **more)


def raising(x, y):
    raise OSError("the file is torn\nand more")


FLOATS = (X / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        (Stream(), {}, r"must give items by index, Stream does not; .*Data.from_datasets"),
        (NoLength(), {}, "must tell its length"),
        (Rows(X[:0], Y[:0]), {}, "must hold at least one item, got 0"),
        (Rows(X[:3], Y[:3]), {}, "2 items must be left to train on, 2 of 3 would be held out"),
        (spoilt_by(raising), {}, r"item 17 of the training dataset cannot be read: OSError: the file is torn; mend"),
        (
            spoilt_by(lambda x, y: (x[:, 1:], y)),
            {},
            r"item 17 .* has shape \(3, 7, 8\), its first has \(3, 8, 8\); resize",
        ),
        (spoilt_by(lambda x, y: (x.astype(np.uint16), y)), {}, "item 17 .* is uint16, its first becomes uint8"),
        (spoilt_by(lambda x, y: (x / 255, y)), {}, "item 17 .* is float64, its first becomes uint8"),
        (spoilt_by(lambda x, y: (x * np.nan, y), x=FLOATS), {}, "item 17 .* holds NaN or infinite values"),
        (spoilt_by(lambda x, y: (x, [y, y])), {}, r"item 17 .* has a target of shape \(2,\), its first \(\)"),
        (spoilt_by(lambda x, y: (x, "cat")), {}, "item 17 .* must have a numeric target"),
        (spoilt_by(lambda x, y: x), {}, r"item 17 .* must be a pair \(x, label\), got ndarray"),
        (spoilt_by(lambda x, y: (x, 9)), {}, "labels must be 0 to 3, item 17 .* has 9"),
        (spoilt_by(lambda x, y: (x, -1)), {}, "labels must be 0 to 3, item 17 .* has -1"),
        (spoilt_by(lambda x, y: (x, y + 0.5)), {}, "item 17 .* has a target of float32, its first int64"),
        (spoilt_by(lambda x, y: {"image": x}, 0), {}, "item 0 .* must be a pair"),
        (Rows(X.astype(int)), {}, "must be uint8 or float, got int64"),
        (TensorDataset(torch.from_numpy(X), torch.rand(ROWS)), {}, "one integer each, got float32"),
        (TensorDataset(torch.from_numpy(X), torch.ones(ROWS, 2)), {}, r"one integer each, got float32 of shape \(2,\)"),
        (Rows(), {"test": Rows(X[:, :, :4], Y)}, r"test dataset must give items like .*\(3, 8, 8\).*got.*\(3, 4, 8\)"),
        (Rows(), {"val": Rows(X[:5], Y[:5] + 2)}, "labels must be 0 to 3, item 2 of the validation dataset has 4"),
        (Rows(), {"workers": -1}, "workers must be a whole number"),
        (Rows(), {"workers": "2"}, "workers must be a whole number"),
        (Rows(), {"memory": "much"}, "memory must be bytes"),
        (Rows(), {"val_fraction": 1.5}, "val_fraction must be between 0 and 1"),
        (Rows(), {"memory": "10kB"}, "itself holds more than memory=10.0kB"),
        (Subset(Rows(), range(50)), {"classes": True}, "at least 2 classes, got True"),
    ],
)
def test_what_cannot_be_streamed_is_said_in_one_line(train, more, message):
    with pytest.raises(DataError, match=message) as caught:
        stream(train, **{"classes": 4 if isinstance(train, Rows | Subset) else None, **more})
    assert "\n" not in str(caught.value)


def test_a_length_that_is_not_true():
    dataset = Rows(X[:40], Y[:40])
    dataset.x = list(X[:30])
    type_of_length = type("Long", (Rows,), {"__len__": lambda self: 40})
    dataset.__class__ = type_of_length
    with pytest.raises(DataError, match=r"item 3\d of the training dataset cannot be read: IndexError"):
        stream(dataset)


class Generated(Dataset):
    """Rows that are computed from their number."""

    def __init__(self, rows, shape=(3, 32, 32)):
        self.rows, self.shape = rows, shape

    def __len__(self):
        return self.rows

    def __getitem__(self, number):
        return np.full(self.shape, number % 251, np.uint8), number % 10


def test_memory_that_is_too_little_says_how_much_is_needed():
    with pytest.raises(
        DataError, match=r"20,000 val|10,000 val and 10,000 test rows .* need 61.6MB, memory=100MB .*'129MB'"
    ):
        Data.stream(Generated(10**9), memory="100MB", classes=10)
    small = {"val": Generated(4), "test": Generated(4), "classes": 10}
    with pytest.raises(DataError, match="streaming with 2 workers needs at least 6.*kB, memory=50.0kB is too little"):
        Data.stream(Generated(10**9), memory=50_000, workers=2, **small)
    assert len(Data.stream(Generated(10**9), memory=50_000, workers=0, **small).train.y) == 10**9


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 10**8),
    st.integers(0, 8),
    st.integers(0, 10**6),
    st.integers(1, 10**5),
    st.none() | st.integers(1, 10**7),
)
def test_what_is_in_flight_fits_into_the_memory_allowed(memory, workers, resident, side, shared):
    form = Form((side,), (side,), np.dtype(np.uint8), False, (), np.dtype(np.int64))
    source = Source(Items(None, "training", form, b"1234"), Kept(10, np.arange(0)), memory, workers, resident)
    try:
        ring = source.ring(workers, shared)
    except DataError as error:
        assert "too little" in str(error) and "\n" not in str(error)
        return
    in_flight = ring.piece * form.row_bytes * (workers * (AHEAD + 1) + 2)
    assert ring.piece >= 1 and in_flight + resident + 4 * (workers + 2) <= memory
    assert not workers or shared is None or in_flight <= shared


@pytest.mark.parametrize(
    ("given_size", "size"),
    [("1GB", 10**9), ("500 MB", 5 * 10**8), ("2 GiB", 2**31), ("1.5kb", 1500), (7, 7), ("1TB", 10**12)],
)
def test_sizes(given_size, size):
    assert memory_of(given_size) == size


@pytest.mark.parametrize("wrong", ["", "GB", "-1GB", "0", 0, -5, True, 1.5, None, "1 XB", "1GB2"])
def test_sizes_there_are_not(wrong):
    with pytest.raises(DataError, match="memory must be bytes such as '1GB'"):
        memory_of(wrong)


# ---- crossing processes, saving


class OpensAFile(Rows):
    def __init__(self, path, at_once):
        super().__init__()
        self.path, self.file = path, open(path, "rb") if at_once else None  # noqa: SIM115

    def __getitem__(self, number):
        self.file = self.file or open(self.path, "rb")  # noqa: SIM115
        return super().__getitem__(number)


def test_it_crosses_by_its_dataset_not_by_its_rows():
    data = Data.stream(Generated(10**7), memory="100MB", val=Generated(8), test=Generated(8), classes=10)
    packed = pickle.dumps(data)
    assert len(packed) < 60_000 + 16 * 3072
    there = pickle.loads(packed)
    assert np.array_equal(there.train.x[[5, 10**7 - 1]], data.train.x[[5, 10**7 - 1]])
    assert (there.fingerprint, there.value_range, there.notes) == (data.fingerprint, data.value_range, data.notes)


def test_files_may_be_opened_when_the_first_item_is_read(tmp_path: Path):
    path = tmp_path / "rows"
    path.write_bytes(b"rows")
    data = stream(OpensAFile(path, at_once=False))
    assert np.array_equal(pickle.loads(pickle.dumps(data)).train.x[:3], data.train.x[:3])
    with pytest.raises(DataError, match="must be able to cross to other processes, but: .*define it at the top level"):
        stream(OpensAFile(path, at_once=True))


def test_a_dataset_that_does_not_open_elsewhere(monkeypatch: pytest.MonkeyPatch):
    packed = pickle.dumps(stream())
    monkeypatch.setattr(Rows, "__setstate__", lambda self, state: raising(0, 0), raising=False)
    with pytest.raises(DataError, match="cannot be opened in another process: OSError: the file is torn"):
        pickle.loads(packed).train.x[0]


def test_it_is_not_saved_and_not_read_again(tmp_path: Path):
    data = stream()
    with pytest.raises(DataError, match="its rows cannot be saved"):
        data.save(tmp_path)
    with pytest.raises(DataError, match="data streamed from Rows are not kept; make them again"):
        Data.from_origin(data.origin)


def test_load_streams_a_pair_where_memory_is_given():
    data = Data.load((Rows(), Rows(X[:8], Y[:8])), memory="10MB")
    assert data.source is not None and len(data.test.y) == 8 and data.name == "Rows"
