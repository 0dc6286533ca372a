"""The tasks by name, in two halves: constants may be chosen on the development half; the other half is only ever measured."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from benchmarks.search.diswot import Diswot
from benchmarks.search.kd_table import PATH as KD_TABLE
from benchmarks.search.lcbench import Lcbench
from benchmarks.search.tables import Table
from benchmarks.search.taskset import Taskset

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "hpo"
DEVELOPMENT = (
    "lcbench-3945",
    "lcbench-126026",
    "lcbench-167149",
    "lcbench-167181",
    "lcbench-167200",
    "lcbench-168331",
    "lcbench-168910",
    "lcbench-189866",
    "lcbench-189908",
    "taskset-patch128_LSTM128_avg_bs64",
    "taskset-patch32_GRU64_avg_bs128",
    "taskset-patch32_LSTM128_bs128",
    "kd-digits",
)
HELD_OUT = (
    "lcbench-34539",
    "lcbench-146212",
    "lcbench-167161",
    "lcbench-167185",
    "lcbench-168329",
    "lcbench-168868",
    "lcbench-189862",
    "lcbench-189905",
    "taskset-patch128_LSTM128_embed128_bs64",
    "taskset-patch32_IRNN64_relu_last_bs128",
    "taskset-patch32_VRNN64_relu_avg_bs128",
    "diswot",
    "kd-fashion_mnist",
)
SHORT = (
    "lcbench-126026",
    "lcbench-168910",
    "taskset-patch32_LSTM128_bs128",
    "lcbench-167185",
    "lcbench-189905",
    "taskset-patch32_VRNN64_relu_avg_bs128",
    "diswot",
    "kd-fashion_mnist",
)
HALVES = {"development": DEVELOPMENT, "held-out": HELD_OUT}


def half_of(name: str) -> str:
    return "development" if name in DEVELOPMENT else "held-out"


def suite_of(name: str) -> str:
    """The module that loads it."""
    return name.partition("-")[0]


def path_of(name: str, folder: Path) -> Path:
    """The file that a task is read from."""
    suite, _, rest = name.partition("-")
    places = {
        "lcbench": folder / "lcbench" / "model.onnx",
        "taskset": folder / "taskset" / f"imdb_{rest}.npz",
        "diswot": folder / "diswot_s1.csv",
        "kd": KD_TABLE,
    }
    return places[suite]


@lru_cache(None)
def load(name: str, folder: Path) -> Table:
    """A task, once a process. Raises FileNotFoundError, which says where it was looked for."""
    path, rest = path_of(name, folder), name.partition("-")[2]
    if not path.exists():
        raise FileNotFoundError(f"the task {name} must be in a file, {path} is not there; name its folder with --data")
    if suite_of(name) == "kd":
        from benchmarks.search.kd import Kd  # imports torch

        return Kd(rest, path)
    if suite_of(name) == "lcbench":
        return Lcbench(path.parent, rest)
    return Taskset(path) if suite_of(name) == "taskset" else Diswot(path)
