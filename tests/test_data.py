"""What Data accepts, what it decides, what it refuses, and that it can be read again."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autokd.arrays import moments, stratified
from autokd.data import SPLITS, Data
from autokd.errors import DataError

RNG = np.random.default_rng(0)


def images(rows: int = 40, shape: tuple[int, ...] = (3, 8, 8)) -> np.ndarray:
    return RNG.integers(0, 256, (rows, *shape), dtype=np.uint8)


def cycle(rows: int = 40, classes: int = 4) -> np.ndarray:
    return np.arange(rows) % classes


X, Y = images(), cycle()
FLOATS = RNG.random((40, 5)).astype(np.float32)


def with_value(array: np.ndarray, row: int, value: float) -> np.ndarray:
    out = array.copy()
    out[row, ...] = value
    return out


# ---- what is accepted


@pytest.mark.parametrize(
    ("given_shape", "stored"),
    [
        ((8, 9), (1, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
        ((1, 8, 3), (1, 8, 3)),
        ((6, 8, 9), (6, 8, 9)),
        ((7,), (7,)),
    ],
)
def test_layouts_end_as_channels_first(given_shape, stored):
    x = images(shape=given_shape)
    data = Data(x, Y, x_test=x, y_test=Y)
    assert data.input_shape == stored
    assert data.train.x.dtype == np.uint8
    assert data.train.x.flags.c_contiguous
    if len(given_shape) == 3 and given_shape[-1] == 3 and stored[0] == 3:
        assert np.array_equal(data.test.x, x.transpose(0, 3, 1, 2))
        assert any("channels last" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["numpy", "torch", "list", "float64", "float16", "bfloat16"])
def test_containers_and_types(kind):
    made = {
        "numpy": (FLOATS, Y),
        "torch": (torch.from_numpy(FLOATS), torch.from_numpy(Y)),
        "list": (FLOATS.tolist(), Y.tolist()),
        "float64": (FLOATS.astype(np.float64), Y.astype(np.uint8)),
        "float16": (FLOATS.astype(np.float16), Y.astype(np.int16)),
        "bfloat16": (torch.from_numpy(FLOATS).bfloat16().requires_grad_(), Y),
    }
    data = Data(*made[kind])
    assert data.train.x.dtype == np.float32
    assert data.train.y.dtype == np.int64
    atol = 1e-2 if "16" in kind else 0
    total = sum(getattr(data, split).x.sum(dtype=np.float64) for split in SPLITS)
    assert total == pytest.approx(FLOATS.sum(dtype=np.float64), rel=max(atol, 1e-6))


def test_bool_labels_are_two_classes():
    assert Data(X, Y % 2 == 0).classes == 2


# ---- what is decided


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(3, 30), min_size=2, max_size=6),
    seed=st.integers(0, 5),
    fraction=st.none() | st.floats(0.01, 0.9),
)
def test_carved_splits_are_a_stratified_partition(counts, seed, fraction):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.arange(len(y), dtype=np.float32)[:, None]
    data = Data(x, y, seed=seed, val_fraction=fraction)
    rows = [getattr(data, split).x[:, 0] for split in SPLITS]
    assert sorted(np.concatenate(rows)) == list(range(len(y)))
    for split in SPLITS:
        part = getattr(data, split)
        assert np.array_equal(part.y, y[part.x[:, 0].astype(int)])
        assert set(part.y) == set(range(len(counts)))
    again = Data(x, y, seed=seed, val_fraction=fraction)
    assert again.fingerprint == data.fingerprint


def test_sizes_follow_the_rules_and_the_test_split_is_noted():
    x = np.arange(2000, dtype=np.float32)[:, None]
    data = Data(x, cycle(2000))
    assert data.describe()["sizes"] == {"train": 1280, "val": 320, "test": 400}
    assert any("no test split was given: 20% of the rows (400" in note for note in data.notes)
    large = np.zeros((10_000, 1), np.uint8)
    assert len(Data(large, cycle(10_000), x_test=large[:4], y_test=cycle(4)).val.y) == 1000
    assert len(Data(x, cycle(2000), x_test=x, y_test=cycle(2000), val_fraction=0.5).val.y) == 1000


def test_given_splits_are_kept_as_they_are():
    data = Data(X, Y, x_val=X[:8], y_val=Y[:8], x_test=X[8:16], y_test=Y[8:16])
    assert np.array_equal(data.train.x, X)
    assert np.array_equal(data.val.x, X[:8])
    assert np.array_equal(data.test.y, Y[8:16])


def test_another_seed_carves_other_rows_of_the_same_sizes():
    one, two = Data(X, Y, seed=0), Data(X, Y, seed=1)
    assert one.fingerprint != two.fingerprint
    assert one.describe()["sizes"] == two.describe()["sizes"]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (X, (0.0, 1.0)),
        (FLOATS, (0.0, 1.0)),
        (np.tile([[-1.0, 2.0]], (40, 1)), (-1.0, 2.0)),
        (np.full((40, 2), 7.0), (7.0, 8.0)),
    ],
)
def test_value_range(x, expected):
    assert Data(x, Y).value_range == expected


@pytest.mark.parametrize(
    ("shape", "flip", "pad"), [((3, 8, 8), True, 1), ((1, 28, 28), False, 4), ((3, 32, 40), True, 4), ((5,), False, 0)]
)
def test_default_flip_and_pad(shape, flip, pad):
    data = Data(images(shape=shape), Y)
    assert (data.flip, data.pad) == (flip, pad)
    assert any("mirrored" in note for note in data.notes) == (len(shape) == 3)
    if len(shape) == 3:
        told = Data(images(shape=shape), Y, flip=not flip, pad=2)
        assert (told.flip, told.pad) == (not flip, 2)
        assert not any("mirrored" in note for note in told.notes)


@pytest.mark.parametrize("shape", [(3, 4, 5), (6,)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_moments_are_those_of_the_training_rows(shape, kind):
    x = images(3000, shape).astype(kind)
    data = Data(x, cycle(3000))
    seen = data.train.x.astype(np.float64) / (255 if kind is np.uint8 else 1)
    axes = (0, *range(2, seen.ndim))
    np.testing.assert_allclose(data.mean, seen.mean(axes), rtol=1e-5)
    np.testing.assert_allclose(data.std, seen.std(axes), rtol=1e-5)


def test_moments_keep_their_digits_far_from_zero_and_constant_channels_get_1():
    x = np.stack([1e4 + RNG.random(5000), np.full(5000, 3.3)], 1).astype(np.float32)
    np.testing.assert_allclose(moments(x)[1][0], x[:, 0].astype(np.float64).std(), rtol=1e-6)
    assert Data(x, cycle(5000)).std[1] == 1


def test_fingerprint_follows_content():
    prints = {
        Data(X, Y).fingerprint,
        Data(with_value(X, 3, 1), Y).fingerprint,
        Data(X, Y[::-1].copy()).fingerprint,
        Data(X, Y, classes=5).fingerprint,
        Data(X.astype(np.float32), Y).fingerprint,
    }
    assert len(prints) == 5
    assert Data(X.copy(), Y.tolist(), name="other").fingerprint in prints


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 9))
def test_stratified_takes_some_of_each_class_and_never_all(counts, fraction, seed):
    y = np.repeat(np.arange(len(counts)), counts)
    taken = np.bincount(y[stratified(y, fraction, seed)], minlength=len(counts))
    for count, take in zip(counts, taken, strict=True):
        assert 1 <= take < count
        assert take == np.clip(round(fraction * count), 1, count - 1)


# ---- what is refused

TEXT = np.array(["cat", "dog"])[Y % 2]
RAGGED = [[1.0, 2.0], [3.0]]
REFUSED = [
    ("float labels", (X, Y + 0.5), {}, "y_train must be integers, got float64; these are no class labels"),
    ("whole floats", (X, Y.astype(float)), {}, r"y_train must be integers, got float64; use y_train.astype\(int\)"),
    ("NaN label", (X, np.where(Y == 1, np.nan, Y)), {}, "these are no class labels"),
    ("negative", (X, Y - 1), {}, "y_train must be 0 or more, got -1 in row 0"),
    ("too high", (X, Y), {"classes": 3}, "y_train must be below classes=3, got 3 in row 3"),
    ("column", (X, Y[:, None]), {}, r"got \(40, 1\); use y_train.reshape\(-1\)"),
    ("one-hot", (X, np.eye(4)[Y]), {}, r"got \(40, 4\); if it is one-hot use y_train.argmax\(axis=1\)"),
    ("scalar", (X, 3), {}, r"y_train must have shape \(N,\), got \(\)"),
    ("text labels", (X, TEXT), {}, "y_train must be numbers, got text; use class_names"),
    ("lengths", (X, Y[:-1]), {}, "equally long, got 40 and 39 rows"),
    ("NaN", (with_value(FLOATS, 17, np.nan), Y), {}, "x_train must be finite, got 5 values .* first in row 17"),
    ("inf", (with_value(FLOATS, 2, -np.inf), Y), {}, "first in row 2"),
    ("overflow", (FLOATS.astype(float) * 1e300, Y), {}, "x_train must be finite"),
    ("object", (np.array([{}] * 40), Y), {}, "plain numeric array, got dtype object"),
    ("ragged", (RAGGED, [0, 1]), {}, "rows of one shape"),
    ("None", (None, Y), {}, "got y_train without x_train"),
    ("no labels", (X, None), {}, "got x_train without y_train"),
    ("complex", (FLOATS * 1j, Y), {}, "got dtype complex"),
    ("int pixels", (X.astype(int), Y), {}, r"must be uint8 or float, got int64; use x_train.astype\('uint8'\)"),
    ("empty", (X[:0], Y[:0]), {}, "x_train must hold at least one row"),
    ("no columns", (FLOATS[:, :0], Y), {}, "x_train must hold at least one row and one value"),
    ("empty labels", (X, Y[:0]), {}, "y_train must hold at least one label"),
    ("rank 1", (FLOATS[:, 0], Y), {}, r"x_train must be images .* got \(40,\)"),
    ("rank 5", (X[..., None], Y), {}, r"got \(40, 3, 8, 8, 1\)"),
    ("one class", (X, Y * 0), {}, "at least 2 classes, got one class only"),
    ("one class told", (X, Y * 0), {"classes": 2}, "y_train must hold at least 2 classes, got class 0 only"),
    ("classes=1", (X, Y), {"classes": 1}, "at least 2 classes, got 1"),
    ("classes text", (X, Y), {"classes": "4"}, "at least 2 classes, got '4'"),
    ("gap", (X, np.where(Y == 1, 2, Y)), {}, "class 1 is missing; renumber or give classes="),
    ("few", (X[:6], [0, 0, 0, 1, 1, 1][:5] + [2]), {}, "each class needs at least 3 samples .* class 2 has 1"),
    (
        "few, own test",
        (X[:3], [0, 0, 1]),
        {"x_test": X[:1], "y_test": [0]},
        "at least 2 samples to carve the validation",
    ),
    ("unseen", (X, Y % 2), {"x_test": X, "y_test": Y, "classes": 4}, "y_test holds class 2, which y_train does not"),
    ("unseen val", (X, Y % 2), {"x_val": X, "y_val": Y}, "y_val holds class 2"),
    ("test shape", (X, Y), {"x_test": X[:, :, :7], "y_test": Y}, r"as those of x_train, \(3, 8, 8\), got \(3, 7, 8\)"),
    ("test type", (X, Y), {"x_test": X / 255, "y_test": Y}, "type of x_train, uint8, got float32"),
    ("half a split", (X, Y), {"x_test": X}, "got x_test without y_test"),
    ("names", (X, Y), {"class_names": ["a", "b"], "classes": 4}, "each of the 4 classes, got 2 names"),
    ("fraction", (X, Y), {"val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
    ("pad", (X, Y), {"pad": 8}, "pad must be an int from 0 to 7"),
    ("pad vectors", (FLOATS, Y), {"pad": 1}, "pad=1 needs images"),
    ("flip vectors", (FLOATS, Y), {"flip": True}, "flip=True needs images"),
]


@pytest.mark.parametrize(
    ("arrays", "options", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_bad_input_is_told_in_one_line(arrays, options, message):
    with pytest.raises(DataError, match=message) as caught:
        Data(*arrays, **options)
    assert "\n" not in str(caught.value)


# ---- reading and writing


def test_digits_are_all_there_and_scaled():
    data = Data.load("digits", seed=3)
    assert data.input_shape == (1, 8, 8)
    assert sum(data.describe()["sizes"].values()) == 1797
    assert (data.train.x.min(), data.train.x.max(), data.classes) == (0, 255, 10)
    other = Data.load("digits")
    assert np.array_equal(other.test.x, data.test.x)
    assert other.fingerprint != data.fingerprint
    assert abs(np.bincount(data.test.y) - 36).max() <= 1


def test_every_origin_rebuilds_the_same_data(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=X, y_train=Y, class_names=["a", "b", "c", "d"], ids=Y)
    for data in (Data.load("digits", seed=3, flip=True), Data.load(tmp_path / "own.npz", val_fraction=0.4)):
        origin = json.loads(json.dumps(data.origin))
        again = Data.from_origin(origin)
        assert again.describe() == data.describe()
    assert data.name == "own"
    assert data.class_names == ("a", "b", "c", "d")
    assert any("'ids' is not read" in note for note in data.notes)


@pytest.mark.parametrize("x", [X, FLOATS], ids=["images", "vectors"])
def test_saved_arrays_come_back_whole(x, tmp_path):
    data = Data(x, Y, name="mine", class_names=list("abcd"))
    with pytest.raises(DataError, match=r"data given as arrays cannot be read again; write them with data.save"):
        Data.from_origin(data.origin)
    origin = data.save(tmp_path / "kept")
    again = Data.from_origin(json.loads(json.dumps(origin)))
    assert {**data.describe(), "origin": None} == {**again.describe(), "origin": None}
    assert Data.load(tmp_path / "kept").origin == origin
    np.save(tmp_path / "kept" / "y_val.npy", again.val.y[::-1])
    with pytest.raises(DataError, match="fingerprint differs"):
        Data.from_origin(origin)
    (tmp_path / "kept" / "data.json").unlink()
    with pytest.raises(DataError, match="must be a folder written by data.save"):
        Data.from_origin(origin)


class Items(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(zip(FLOATS, Y, strict=True))


def test_torch_datasets():
    train, test = Items(torch.from_numpy(X), Y.tolist()), Items(X[:8], torch.from_numpy(Y[:8]))
    data = Data.load((train, test))
    assert np.array_equal(data.test.x, X[:8])
    assert len(data.train.y) + len(data.val.y) == 40
    assert data.name == "Items"
    assert Data.from_datasets(Stream()).input_shape == (5,)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([], []), "at least one item"),
        ([3, 4], "pairs .x, label., got int"),
        (Items([X[0], X[1][:, :4]], [0, 1]), r"one shape, got \(3, 8, 8\) and \(3, 4, 8\)"),
    ],
)
def test_datasets_that_cannot_be_used(dataset, message):
    with pytest.raises(DataError, match=message):
        Data.from_datasets(dataset)


def test_torchvision_names(tmp_path):
    pytest.importorskip("torchvision")
    folder = tmp_path / "cifar-10-batches-py"
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 needs root="):
        Data.load("torchvision:CIFAR10")
    with pytest.raises(DataError, match="no dataset 'CIFAR1O'; did you mean 'CIFAR10'"):
        Data.load("torchvision:CIFAR1O", root=tmp_path)
    with pytest.raises(DataError, match=r"must lie under root=.*download=True") as caught:
        Data.load("torchvision:CIFAR10", root=folder)
    assert "\n" not in str(caught.value)


def test_a_torchvision_dataset_on_disk_is_read_whole(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # our files are tiny
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: setattr(self, "classes", list("abcd")))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    x = images(8, (3, 32, 32))
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]:
        content = {"data": x.reshape(8, -1), "labels": (np.arange(8) % 4).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    data = Data.load("torchvision:CIFAR10", root=tmp_path)
    assert np.array_equal(data.test.x, x)
    assert data.class_names == tuple("abcd")
    assert len(data.train.y) + len(data.val.y) == 40
    assert Data.from_origin(data.origin).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", {"X_train": X, "y_train": Y}, "must hold 'x_train'; did you mean 'X_train'"),
        ("b.npz", {"x_train": X}, "must hold 'y_train'"),
        (
            "c.npz",
            {"x_train": X, "y_train": np.array([{}] * 40)},
            "must be an .npz file of plain arrays, but: Object arrays",
        ),
        ("d.npz", b"not a zip", "must be an .npz file of plain arrays"),
        ("e.npz", b"", "must be an .npz file of plain arrays"),
        ("f.csv", b"1,2", "is none of them"),
        ("g.npz", None, "does not exist"),
        ("nowhere/h.csv", None, "does not exist"),
    ],
)
def test_files_that_cannot_be_used(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(DataError, match=message) as caught:
        Data.load(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", "unknown data 'digit'; did you mean 'digits'"),
        (7, "must be a name, a path or a pair of datasets, got int"),
        ((1, 2, 3), r"a pair of datasets \(train, test\) is needed, got 3"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(DataError, match=message):
        Data.load(source)


def test_importing_data_needs_no_torch():
    code = "import sys, autokd.data; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.split() == ["False", "False"]
