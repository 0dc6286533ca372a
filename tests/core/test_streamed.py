"""Streamed rows equal resident rows bit for bit, memory stays bounded, and whatever goes wrong with a dataset is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import psutil
import pytest
import torch
from tiny import SHAPE, recipe
from tiny import core as tiny_core
from tiny import order as order_of
from torch.utils.data import Dataset

from autokd.augment.counters import permutation
from autokd.augment.views import make_batch
from autokd.core.data import Resident, order
from autokd.core.device import cpu_count
from autokd.core.streamed import Pieces, Streamed, ring_for
from autokd.data import Data, Split
from autokd.errors import DataError, TrialFailure
from autokd.items import Form, Items, Kept, LazyRows
from autokd.recipe import AugmentSpec
from autokd.stream import Ring, Source

ROWS = 700
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


class Generated(Dataset):
    """Rows that are computed from their number; items from `bad` on go wrong in a way of their own."""

    def __init__(self, rows=ROWS, shape=(3, 8, 8), bad=None, way=None):
        self.rows, self.shape, self.bad, self.way = rows, shape, bad, way

    def __len__(self):
        return self.rows

    def __getitem__(self, number):
        x = np.full(self.shape, number % 251, np.uint8)
        x.flat[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
        return self.way(x, number) if number == self.bad else (x, number % 10)


SMALL = {"val": Generated(20), "test": Generated(20), "classes": 10}


def stream(dataset=None, **more):
    return Data.stream(Generated() if dataset is None else dataset, **{"memory": "10MB", **SMALL, **more})


def number_of(x):
    return x.reshape(len(x), -1)[:, :8].contiguous().view(torch.int64)[:, 0]


def spoil(data, bad, way):
    """From now on one item of the dataset goes wrong: after it was looked at, in the middle of an epoch."""
    dataset = data.source.items.dataset
    dataset.bad, dataset.way = bad, way
    import cloudpickle

    data.source.items.packed = cloudpickle.dumps(dataset)


def raises(x, number):
    raise OSError("torn\nfile")


def shrinks(x, number):
    return x[:, 1:], 0


def mislabels(x, number):
    return x, 10


def dies(x, number):
    os.kill(os.getpid(), signal.SIGKILL)


# ---- the same rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("memory", ["10MB", "24kB"], ids=["whole batches", "pieces"])
def test_batches_are_those_of_resident_rows(workers, memory, device):
    streamed = Streamed(stream(workers=workers, memory=memory), device)
    rows = [Generated()[number] for number in range(ROWS)]
    whole = Data(
        np.stack([x for x, _ in rows]), [y for _, y in rows], x_val=streamed.data.val.x, y_val=streamed.data.val.y,
        x_test=streamed.data.test.x, y_test=streamed.data.test.y,
    )  # fmt: skip
    resident = Resident(whole, device)
    assert len(streamed) == len(resident) and (memory == "10MB" or streamed.ring.piece < 60)
    assert torch.equal(streamed.val_x, resident.val_x) and torch.equal(streamed.val_y, resident.val_y)
    augment = AugmentSpec(policy="jda", rho=0.5)
    generator = torch.random.get_rng_state()
    for epoch in range(2):
        batches = order(ROWS, 64, 5, epoch, device)
        pairs = zip(batches, streamed.fetch(batches), resident.fetch(batches), strict=True)
        for index, (x, y), (resident_x, resident_y) in pairs:
            assert x.dtype == torch.uint8 and x.device == resident_x.device
            made, resident_made = (
                make_batch(*each, index, augment=augment, seed=5, epoch=epoch, pad=1, flip=True)
                for each in ((x, y), (resident_x, resident_y))
            )
            assert torch.equal(made.x, resident_made.x) and torch.equal(made.y, resident_made.y)
    assert torch.equal(generator, torch.random.get_rng_state()), (
        "dropout would come out otherwise than with resident rows"
    )
    streamed.close()


def test_items_held_out_are_never_fetched():
    data = stream(val=None, test=None)
    streamed = Streamed(data)
    assert len(streamed) == ROWS - 140
    seen = torch.cat([number_of(x) for x, _ in streamed.fetch(permutation(0, 0, len(streamed)).split(100))])
    held = torch.cat([number_of(torch.from_numpy(split.x)) for split in (data.val, data.test)])
    assert sorted(seen.tolist() + held.tolist()) == list(range(ROWS))


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_may_be_left_and_fetched_side_by_side(workers):
    streamed = Streamed(stream(workers=workers, memory="24kB"))  # several pieces to a batch
    left = streamed.fetch(torch.arange(ROWS).split(50))
    next(left), next(left)
    left.close()
    ahead, back = torch.arange(ROWS).split(30), torch.arange(ROWS).flip(0).split(30)
    for index, (x, _), other, (y, _) in zip(ahead, streamed.fetch(ahead), back, streamed.fetch(back), strict=True):
        assert torch.equal(number_of(x), index) and torch.equal(number_of(y), other)
    assert [len(x) for x, _ in streamed.fetch([torch.arange(0), torch.arange(3)])] == [0, 3]
    assert list(streamed.fetch([])) == []
    streamed.close()


class OneAtATime(Generated):
    """As a file is whose position two threads would both move."""

    lock = Lock()

    def __getitem__(self, number):
        assert self.lock.acquire(blocking=False), "two threads read at once"
        time.sleep(1e-5)
        self.lock.release()
        return super().__getitem__(number)


def test_threads_fetch_at_once_but_read_one_at_a_time():
    streamed, seen = Streamed(stream(OneAtATime(), workers=0)), []

    def lane(seed):
        batches = permutation(seed, 0, ROWS).split(40)
        seen.append(torch.equal(torch.cat([number_of(x) for x, _ in streamed.fetch(batches)]), torch.cat(batches)))

    lanes = [Thread(target=lane, args=(seed,)) for seed in range(4)]
    for each in lanes:
        each.start()
    for each in lanes:
        each.join()
    assert seen == [True] * 4


def test_targets_may_have_any_shape():
    class Masks(Generated):
        def __getitem__(self, number):
            return super().__getitem__(number)[0], np.full((4, 4), number, np.int64)

    form = Form((3, 8, 8), (3, 8, 8), np.dtype(np.uint8), False, (4, 4), np.dtype(np.int64))
    data = stream()
    items = Items(Masks(), "training", form)
    data.source = Source(items, Kept(ROWS, np.arange(0)), 10**7, 0, 0)
    data.train = Split(LazyRows(items, data.source.kept, 0), LazyRows(items, data.source.kept, 1))
    x, y = next(Streamed(data).fetch([torch.tensor([7, 3])]))
    assert y.shape == (2, 4, 4) and y[:, 1, 2].tolist() == [7, 3] and number_of(x).tolist() == [7, 3]


# ---- memory


def in_tree():
    """Bytes of their own that this process and all below it hold, with rows that wait in shared memory.

    Not the proportional size: a library's pages weigh more when another program that uses them ends.
    """
    me, total, waiting = psutil.Process(), 0, {}
    for process in (me, *me.children(recursive=True)):
        try:
            told = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            total += sum(1024 * int(told[name].split()[0]) for name in ("RssAnon", "RssShmem"))
            for file in Path(f"/proc/{process.pid}/fd").iterdir():
                if os.readlink(file).startswith("/dev/shm/torch"):
                    waiting[file.stat().st_ino] = file.stat().st_size
        except (FileNotFoundError, ProcessLookupError, KeyError):
            continue
    return total + sum(waiting.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_gigabytes_are_streamed_in_a_few_megabytes(workers):
    rows, shape, batch = 3_400_000, (3, 32, 32), 256  # 10.4 GB
    small = {split: Generated(100, shape) for split in ("val", "test")}
    data = stream(Generated(rows, shape), workers=workers, memory="12MB", **small)
    streamed = Streamed(data)
    drawn = np.random.default_rng(0).integers(0, rows, (300, batch))
    batches = [torch.from_numpy(index) for index in drawn]  # 236 MB of rows
    assert len(list(streamed.fetch(batches[:8]))) == 8  # workers stand, and have imported what they need
    before, most = in_tree(), 0
    for step, (x, y) in enumerate(streamed.fetch(batches)):
        assert np.array_equal(number_of(x).numpy(), drawn[step]) and np.array_equal(y.numpy(), drawn[step] % 10)
        if step % 60 == 30:
            time.sleep(0.2)  # a slow trainer: workers read as far ahead as they may
            most = max(most, in_tree() - before)
    slack = 3_000_000  # allocators; two batches of 0.8 MB in the trainer's hands
    assert most < 12_000_000 + slack, f"{most / 1e6:.1f} MB"
    streamed.close()


def test_batches_are_cut_into_pieces_that_fit():
    pieces = Pieces(Kept(100, np.arange(10)), most=7)
    pieces.begin([torch.arange(30), torch.arange(7), torch.arange(1)])
    cut = list(pieces)
    assert [len(piece) for piece in cut] == [6, 6, 6, 6, 6, 7, 1] and list(pieces.counts) == [5, 1, 1]
    assert sum(cut[:5], []) == list(range(10, 40))


def test_workers_by_default():
    data = stream(memory="10MB")
    assert ring_for(data.source, "cpu") == Ring(0, 256)
    assert ring_for(stream(workers=3).source, "cpu").workers == 3
    source = data.source
    assert 1 <= ring_for(source, "cuda").workers <= 4 or cpu_count() == 1
    just = source.resident + 2 * len(source.items.packed) + 3 * source.items.form.row_bytes
    assert ring_for(replace(source, memory=just), "cuda") == Ring(0, 1), "workers would not fit"


def test_little_shared_memory_makes_the_ring_smaller(monkeypatch):
    monkeypatch.setattr("autokd.core.streamed._shared_memory", lambda: 40_000)
    assert 1 <= Streamed(stream(workers=2)).ring.piece < 20
    monkeypatch.setattr("autokd.core.streamed._shared_memory", lambda: 400)
    with pytest.raises(DataError, match="shared memory of 400 bytes is too little; give more, or fewer workers"):
        Streamed(stream(workers=2))


# ---- what goes wrong


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("way", "message"),
    [
        (raises, r"item 333 of the training dataset cannot be read: OSError: torn; mend"),
        (shrinks, r"item 333 .* has shape \(3, 7, 8\), its first has \(3, 8, 8\)"),
        (mislabels, "labels must be 0 to 9, item 333 .* has 10"),
    ],
)
def test_an_item_that_goes_wrong_in_mid_epoch_is_named(workers, way, message):
    data = stream(workers=workers)
    spoil(data, 333, way)
    streamed, batches = Streamed(data), torch.arange(ROWS).split(50)
    got = []
    with pytest.raises(DataError, match=message) as caught:
        for x, _ in streamed.fetch(batches):
            got.append(number_of(x))
    assert "\n" not in str(caught.value) and torch.equal(torch.cat(got), torch.arange(300))
    assert [len(x) for x, _ in streamed.fetch(batches[:6])] == [50] * 6, "the next trial goes on"
    streamed.close()


def test_a_worker_that_dies_ends_the_fetch_not_the_search():
    data = stream(workers=1)
    spoil(data, 333, dies)
    streamed, batches = Streamed(data), torch.arange(ROWS).split(50)
    with pytest.raises(
        DataError, match="a worker that reads the training dataset died: .*lower memory= or workers="
    ) as caught:
        list(streamed.fetch(batches))
    assert "\n" not in str(caught.value)
    assert [len(x) for x, _ in streamed.fetch(batches[:6])] == [50] * 6
    streamed.close()


class OfThree(Generated):
    def __getitem__(self, number):
        return super().__getitem__(number)[0], number % 3


def test_an_item_that_goes_wrong_costs_the_trial_not_the_search(tmp_path: Path):
    data = Data.stream(OfThree(shape=SHAPE), OfThree(20, SHAPE), OfThree(20, SHAPE), memory="1MB", classes=3)
    core = tiny_core(tmp_path, data)
    before = core.advance(order_of(recipe(), to=1))
    spoil(data, 333, raises)
    with pytest.raises(TrialFailure, match="item 333 of the training dataset cannot be read: OSError: torn"):
        core.advance(order_of(recipe(), to=2, start=1))
    data.source.items.dataset.bad = None
    after = core.advance(order_of(recipe(), to=2, start=1))
    assert (before.epoch, after.epoch, after.retries) == (1, 2, 0)
    core.close()


def loaders():
    """Processes that read for this one. The server they come from, and the tracker of resources, stay."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return {worker for server in servers for worker in server.children()}


def test_workers_end_with_close():
    data, others = stream(workers=2), loaders()
    spoil(data, 3, raises)
    streamed = Streamed(data)
    with pytest.raises(DataError) as held:  # an exception that somebody keeps, with all that it was raised through
        next(streamed.fetch([torch.arange(5)]))
    own = loaders() - others
    assert len(own) == 2
    streamed.close()
    _, left = psutil.wait_procs(own, timeout=10)
    assert not left and held.value


TRAINER = """
import torch
from autokd.core.device import cpu_count
from autokd.core.streamed import Streamed
from test_streamed import stream

if __name__ == "__main__":
    fetching = Streamed(stream(workers=1)).fetch(torch.arange(700).split(10))
    next(fetching)
    print("reads", flush=True)
    input()
"""


def test_workers_end_when_the_trainer_is_killed(tmp_path: Path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    paths = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as trainer:
        assert trainer.stdout.readline() == b"reads\n"
        below = psutil.Process(trainer.pid).children(recursive=True)
        assert len(below) == 3  # the tracker of resources, the server, the worker
        trainer.kill()
    _, left = psutil.wait_procs(below, timeout=20)
    assert not left


def test_rows_in_memory_are_not_streamed():
    with pytest.raises(DataError, match="is not streamed; make it with Data.stream"):
        Streamed(Data(np.zeros((40, 3), np.float32), np.arange(40) % 2))
