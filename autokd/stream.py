"""Training rows that stay where they are: a torch map-style Dataset whose items are read while they are trained on.

What a search asks of its data is found out from a sample of the items, and every item read later is checked against it, so that a
dataset which changes its shape, raises or mislabels in mid-epoch is named by item. Rows in memory are bounded (`Ring`).
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from autokd.arrays import Array
from autokd.errors import DataError, InputError
from autokd.items import Form, Items, Kept, Pair, form_of, told, values_of
from autokd.sizes import parse_size
from autokd.words import count

SAMPLE = 1024  # training items that mean, deviation, value range and fingerprint are taken from, at most
TWICE = 64  # of these are read a second time: do they come out the same?
HELD_OUT = 10_000  # items of a split that is drawn, at most; and a tenth of all
AHEAD = 4  # pieces each worker reads ahead
PIECE = 256  # rows read in one go, at most
WORKING = 24  # bytes that statistics need for each value of the sample


# ---- how much is in memory


class Ring(NamedTuple):
    """How rows are read: by so many workers (0: in this process), so many rows in one go."""

    workers: int
    piece: int


@dataclass(frozen=True)
class Source:
    """Where the training rows of a streamed Data come from, and how much memory their rows may take."""

    items: Items
    kept: Kept
    memory: int  # bytes for each lane: rows in flight, validation and test rows, and what the dataset itself holds
    workers: int | None  # None: chosen by the device
    resident: int  # bytes of validation and test rows

    def ring(self, workers: int, shared: int | None = None) -> Ring:
        """As many rows at a time as `memory`, and `shared` bytes of shared memory, allow. Raises DataError if none fits.

        Counted are AHEAD pieces and one being put together for each worker, the one in the trainer's hands and its pinned copy.
        """
        pieces = workers * (AHEAD + 1) + 2
        fixed = self.resident + (workers + 2) * len(self.items.packed)  # unpacked here and in each worker, and packed
        room = self.memory - fixed
        if workers and shared is not None:
            room = min(room, shared)
        rows = room // (pieces * self.items.form.row_bytes)
        if rows < 1:
            needed = fixed + pieces * self.items.form.row_bytes
            short = f"shared memory of {shared:,} bytes" if room == shared else f"memory={count(self.memory)}B"
            raise DataError(
                f"streaming with {workers} workers needs at least {count(needed)}B, {short} is too little; "
                "give more, or fewer workers"
            )
        return Ring(workers, min(PIECE, rows))


def memory_of(value: object) -> int:
    """Bytes: "1GB", "500 MB", "2 GiB", or a number. Raises DataError."""
    try:
        amount = parse_size(value)  # type: ignore[arg-type]
    except InputError:
        amount = 0
    if amount < 1:
        raise DataError(f"memory must be bytes such as '1GB', '500MB' or 2_000_000_000, got {value!r}")
    return amount


# ---- opening


class Opened(NamedTuple):
    """A stream before its classes are known."""

    source: Source
    held: dict[str, Items]  # the datasets of the splits that are read into memory
    numbers: dict[str, Array]  # and which of their items
    chosen: Array  # numbers of the items of the sample
    sample: Pair
    labels: Array | None  # of all items of the training dataset, if it tells
    deterministic: bool
    notes: list[str]
    seed: int

    def training_labels(self, classes_told: bool) -> Array:
        """Labels that training rows have, for counting classes. Raises DataError if classes must be told and are not."""
        items = self.source.items
        if items.form.target_shape or items.form.target_dtype != np.int64:
            kind = f"{items.form.target_dtype} of shape {items.form.target_shape}"
            raise DataError(
                f"labels of the {items.name} dataset must be one integer each, got {kind}; number the classes"
            )
        if self.labels is not None:
            return self.source.kept.of(self.labels)
        if not classes_told:
            seen = int(self.sample[1].max()) + 1
            raise DataError(
                f"classes= is needed, for the {items.name} dataset has no .targets or .labels that agree with its items; "
                f"the {len(self.chosen):,} looked at would need classes={seen}"
            )
        return np.arange(2)  # every class is taken to occur

    def splits(self, classes: int) -> dict[str, Pair]:
        """Validation and test rows. Random transforms of theirs are drawn once, by the seed."""
        self.source.items.classes = classes
        self.source.items.check_labels(self.chosen.tolist(), self.sample[1])
        read = {}
        for place, (split, items) in enumerate(self.held.items()):
            items.classes = classes
            with _seeded(self.seed + 2 + place):
                read[split] = items.read(self.numbers[split].tolist())
        return read

    def fingerprint(self, classes: int, splits: Mapping[str, Pair]) -> str:
        """Of the dataset's class, length and form, the sample, the validation and test rows, and the number of classes."""
        items, kept = self.source.items, self.source.kept
        about = (classes, type(items.dataset).__qualname__, len(kept), items.form, sorted(splits))
        digest = hashlib.sha256(str(about).encode())
        for x, y in (self.sample, *(splits[split] for split in sorted(splits))):
            digest.update(np.ascontiguousarray(x).data)
            digest.update(np.ascontiguousarray(y).data)
        return digest.hexdigest()[:16]


def opened(
    datasets: Mapping[str, Any], memory: object, workers: int | None, fraction: float | None, seed: int
) -> Opened:
    """Look at the datasets "train", "val" and "test" (None: items are drawn from train). Raises DataError."""
    with _seeded(seed):
        return _looked_at(datasets, memory_of(memory), workers, fraction, seed)


def _looked_at(
    datasets: Mapping[str, Any], memory: int, workers: int | None, fraction: float | None, seed: int
) -> Opened:
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise DataError(f"workers must be a whole number, 0 or more, got {workers!r}; leave it out for the default")
    train = datasets["train"]
    total = _length(train, "training")
    packed = _packed(train, memory)  # before the first item is read: reading may open files
    items = Items(train, "training", form_of(train, "training"), packed)
    held, numbers, notes = _held_out(datasets, items, total, fraction, seed)
    drawn = [numbers[split] for split in numbers if datasets[split] is None]
    kept = Kept(total, np.concatenate(drawn) if drawn else np.zeros(0, np.int64))
    source = Source(items, kept, memory, workers, sum(len(each) for each in numbers.values()) * items.form.row_bytes)
    _check_resident(source, numbers)
    source.ring(workers or 0)
    chosen = _sample(source, seed)
    sample, deterministic = _probe(items, chosen, seed)
    notes.insert(0, _note(source, total, len(chosen)))
    if not deterministic:
        notes.append(
            "items come out different when read again: their own random transforms are kept (frozen in validation and "
            "test rows); teacher outputs cannot be recorded"
        )
    labels = _known_labels(train, total)
    if labels is not None and not np.array_equal(labels[chosen], sample[1]):
        labels = None  # numbered otherwise than the items themselves
    return Opened(source, held, numbers, chosen, sample, labels, deterministic, notes, seed)


def _length(dataset: Any, name: str) -> int:
    """Raises DataError for what cannot be read by index."""
    from torch.utils.data import IterableDataset

    remedy = "give a map-style Dataset, or read it whole: Data.from_datasets(train, test)"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(f"the {name} dataset must give items by index, {type(dataset).__name__} does not; {remedy}")
    try:
        length = len(dataset)
    except Exception as error:  # the user's own code; torch's Dataset has no __len__
        raise DataError(f"the {name} dataset must tell its length: {told(error)}; define __len__") from None
    if length < 1:
        raise DataError(f"the {name} dataset must hold at least one item, got {length}; check its folder or filter")
    return int(length)


def _packed(dataset: Any, limit: int) -> bytes:
    """The dataset as bytes that other processes open. Raises DataError if it cannot cross, or holds the rows itself."""
    import cloudpickle  # also takes classes of scripts and notebooks, which their workers could not import

    sink = _Sink(limit)
    try:
        cloudpickle.Pickler(sink).dump(dataset)
    except OverflowError:
        raise DataError(
            f"the training dataset itself holds more than memory={count(limit)}B, and each process would hold it again; "
            "read in __getitem__, or use Data.from_datasets"
        ) from None
    except Exception as error:  # whatever __reduce__ or __getstate__ of the user's own raise
        raise DataError(
            f"the training dataset must be able to cross to other processes, but: {told(error)}; "
            "define it at the top level of a module and open files in __getitem__"
        ) from None
    return sink.getvalue()


class _Sink(io.BytesIO):
    """Takes `limit` bytes, so that a dataset full of rows is found out before it fills the memory twice."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, some: Any, /) -> int:
        if self.tell() + memoryview(some).nbytes > self.limit:
            raise OverflowError
        return super().write(some)


def _held_out(
    datasets: Mapping[str, Any], train: Items, total: int, fraction: float | None, seed: int
) -> tuple[dict[str, Items], dict[str, Array], list[str]]:
    """The items of each split that is read into memory: a dataset's own, or drawn from training."""
    held: dict[str, Items] = {}
    numbers: dict[str, Array] = {}
    notes: list[str] = []
    share = max(1, min(total // 10, HELD_OUT))
    shares = {"val": share if fraction is None else max(1, round(fraction * total)), "test": share}
    most = sum(shares[split] for split in shares if datasets[split] is None)
    if total - most < 2:
        raise DataError(f"2 items must be left to train on, {most} of {total} would be held out; give val and test")
    drawn = np.random.default_rng(seed).choice(total, most, replace=False)
    for split, words in (("val", "validation"), ("test", "test")):
        dataset = datasets[split]
        if dataset is not None:
            numbers[split] = np.arange(_length(dataset, words))
            held[split] = Items(dataset, words, _same_form(dataset, words, train.form))
        else:
            numbers[split], drawn = np.sort(drawn[: shares[split]]), drawn[shares[split] :]
            held[split] = train
            notes.append(f"{words}: {shares[split]:,} items were drawn by seed {seed} and taken out of training")
    return held, numbers, notes


def _same_form(dataset: Any, name: str, train: Form) -> Form:
    form = form_of(dataset, name)
    if form[1:3] + form[4:] != train[1:3] + train[4:]:
        told = [
            f"{each.dtype} {each.shape} with targets {each.target_dtype} {each.target_shape}" for each in (train, form)
        ]
        raise DataError(f"the {name} dataset must give items like the training dataset, {told[0]}, got {told[1]}")
    return form


def _check_resident(source: Source, numbers: Mapping[str, Array]) -> None:
    if 2 * source.resident > source.memory:
        sizes = " and ".join(f"{len(each):,} {split}" for split, each in numbers.items())
        raise DataError(
            f"{sizes} rows are kept in memory and need {count(source.resident)}B, memory={count(source.memory)}B allows "
            f"half of itself; give memory='{count(2.1 * source.resident)}B' or smaller splits (torch.utils.data.Subset)"
        )


def _sample(source: Source, seed: int) -> Array:
    """Numbers of the items that statistics are taken from: all, or the first, the last and others drawn by seed."""
    rows, values = len(source.kept), int(np.prod(source.items.form.shape))
    most = max(2, min(SAMPLE, source.memory // (WORKING * values)))
    if rows <= most:
        return source.kept.numbers(np.arange(rows))
    drawn = np.random.default_rng(seed + 1).choice(rows, most, replace=False)
    drawn[:2] = 0, rows - 1
    return source.kept.numbers(np.unique(drawn))


def _probe(items: Items, chosen: Array, seed: int) -> tuple[Pair, bool]:
    """The sample, and whether items come out the same when they are read again under other random numbers."""
    with _seeded(seed):
        x, y = items.read(chosen.tolist())
    again = np.unique(np.linspace(0, len(chosen) - 1, TWICE).astype(int))
    with _seeded(seed + 1):
        other_x, other_y = items.read(chosen[again].tolist())
    return (x, y), bool(np.array_equal(x[again], other_x) and np.array_equal(y[again], other_y))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators that transforms draw from stand at `seed` inside; afterwards, where they stood before."""
    import torch

    plain, numpys, torchs = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)
        torch.default_generator.set_state(torchs)


def _known_labels(dataset: Any, total: int) -> Array | None:
    """Labels of all items from `.targets` or `.labels`, also through torch's Subset; None if it has no such list."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        whole = _known_labels(dataset.dataset, len(dataset.dataset))
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    for name in ("targets", "labels"):
        try:
            labels = values_of(getattr(dataset, name, None))
        except (TypeError, ValueError):
            continue
        if labels.shape == (total,) and labels.dtype.kind in "biu":
            return labels.astype(np.int64)
    return None


def _note(source: Source, total: int, sample: int) -> str:
    kind = type(source.items.dataset).__name__
    told = f"training rows are streamed from {kind} ({total:,} items), with at most {count(source.memory)}B of rows in memory"
    return f"{told} for each lane; mean, deviation and value range are those of {sample:,} of them"
