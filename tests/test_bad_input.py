"""Wrong command lines and wrong data: one line on stderr that begins with "error: ", an exit code, and nothing trained or left behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import events_of
from torch import nn

import autokd
from autokd.cli import main
from autokd.errors import AutokdError, DataError, InputError, TeacherError

MODULES = {
    "mine.py": """\
import torch
from torch import nn

class Wrong(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :5]

class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom\\nsecond line")

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))

class Guesses(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 100)
    def forward(self, x):
        return 0 * self.layer(x.flatten(1))[:, :10]

class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 10)

def bad():
    raise ValueError("in\\nfactory")

def needs(size):
    return Flat()

def nothing():
    return None

number = 3
""",
    "missing.py": "import nothing_of_that_name\n",
    "syntax.py": "def (:\n",
    "boom.py": "1 / 0\n",
}
SPACES = {
    "low.yaml": "optim.lr: {float: [1, 0.1]}",
    "log.yaml": "optim.lr: {float: [0, 0.1], log: true}",
    "condition.yaml": "optim.lr: {float: [0.01, 0.1], when: {nowhere: 1}}",
    "unknown.yaml": "optim.lrr: {float: [0.01, 0.1]}",
    "objective.yaml": "terms.kdd.weight: 1",
    "family.yaml": "student.mpl.width: {int: [4, 8]}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, finished: Any, teacher_folder: Path) -> Path:
    """A folder full of things that are almost right."""
    here = tmp_path_factory.mktemp("world")
    write_data(here)
    for name, text in MODULES.items():
        (here / name).write_text(text)
    for name, field in SPACES.items():
        text = f"version: 1\nepochs: {{max: 9}}\nfields:\n  student.family: {{choice: [mlp]}}\n  {field}\n"
        (here / name).write_text(text)
    (here / "bad.json").write_text("{")
    (here / "binary.json").write_bytes(b"\xff\xfe\x00")
    (here / "list.json").write_text("[]")
    (here / "family.json").write_text('{"student": {"family": "resnte"}}')
    (here / "field.json").write_text('{"student": {"family": "mlp", "widht": 8}}')
    (here / "file").write_text("")
    (here / "full").mkdir()
    (here / "full" / "thing").write_text("")
    write_teachers(here, teacher_folder)
    write_runs(here, Path(finished.run_dir))
    return here


def write_data(here: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)).astype("float32"), np.arange(200) % 3
    holes = x.copy()
    holes[3, 2] = np.nan
    pairs = {
        "good": (x, y),
        "nan": (holes, y),
        "float": (x, y + 0.5),
        "negative": (x, y - 1),
        "one": (x, y * 0),
        "few": (x[:3], y[:3]),
        "gap": (x, y * 2),
        "short": (x, y[:7]),
        "objects": (np.array([None] * 9), np.arange(9)),
    }
    for name, (rows, labels) in pairs.items():
        np.savez(here / f"{name}.npz", x_train=rows, y_train=labels)
    np.savez(here / "names.npz", a=x)
    (here / "noise.npz").write_bytes(b"PK\x03\x04 nothing")
    (here / "empty.npz").write_bytes(b"")


def write_teachers(here: Path, good: Path) -> None:
    for name in ("teacher", "torn", "old", "listed"):
        shutil.copytree(good, here / name)
    weights = bytearray((good / "teacher.safetensors").read_bytes())
    weights[-5] ^= 1
    (here / "torn" / "teacher.safetensors").write_bytes(weights)
    about = json.loads((good / "teacher.json").read_text())
    (here / "old" / "teacher.json").write_text(json.dumps({**about, "format": 99}))
    (here / "listed" / "teacher.json").write_text("[1]")
    (here / "hollow").mkdir()


def write_runs(here: Path, run: Path) -> None:
    for name in ("run", "headless", "blank", "without_student", "without_teacher"):
        shutil.copytree(run, here / name)
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (here / "headless" / "ledger.jsonl").write_text("".join(lines[1:]))
    (here / "blank" / "ledger.jsonl").write_text("")
    shutil.rmtree(here / "without_student" / "student")
    shutil.rmtree(here / "without_teacher" / "teacher")
    (here / "folder" / "ledger.jsonl").mkdir(parents=True)


S = "search --executor inline --no-tracking --budget 3trials"
T = f"{S} --teacher teacher"
D = "distill --teacher teacher --recipe"
GOOD = "run/student/recipe.json"
LINES: list[tuple[str, int, str]] = [  # command line, exit code, part of what is said
    ("--nope", 2, "No such option '--nope'"),
    ("serch", 2, "Did you mean 'search'?"),
    # ---- search: what is missing or unknown
    ("search", 2, "Missing option '--teacher'. (see autokd search --help)"),
    ("search --teacher", 2, "requires an argument"),
    ("search --teacher teacher", 2, "Missing option '--budget'"),
    (f"{T} --bugdet 3", 2, "Did you mean one of: '--budget'"),
    (f"{T} extra", 2, "unexpected extra argument (extra)"),
    # ---- budgets
    ("search --teacher teacher --budget ''", 2, "positive number and a unit, got ''"),
    ("search --teacher teacher --budget 0s", 2, "must be positive and finite"),
    ("search --teacher teacher --budget '0 trials'", 2, "must be positive and finite"),
    ("search --teacher teacher --budget 90", 2, "must have a unit, got '90'"),
    ("search --teacher teacher --budget -5m", 2, "a positive number and a unit, got '-5m'"),
    ("search --teacher teacher --budget nonsense", 2, "write for example '90s'"),
    # ---- teachers
    (f"{S} --teacher ''", 2, "teacher"),
    (f"{S} --teacher digts", 2, "unknown teacher 'digts'; did you mean 'digits'?"),
    (f"{S} --teacher hollow", 2, "must hold a readable teacher.json"),
    (f"{S} --teacher file", 2, "unknown teacher 'file'"),
    (f"{S} --teacher listed", 2, "teacher format must be 1"),
    (f"{S} --teacher old", 2, "teacher format must be 1, got 99"),
    (f"{S} --teacher torn", 2, "fails its checksum; save the teacher again"),
    (f"{S} --teacher fit", 2, "add --data"),
    (f"{S} --teacher fit: --data good.npz", 2, "unknown family ''"),
    (f"{S} --teacher fit:resnte --data digits", 2, "did you mean 'resnet'?"),
    (f"{S} --teacher fit:resnet --data good.npz", 2, "does not take rows of shape (6,)"),
    (f"{S} --teacher digits --data good.npz", 2, "use --teacher fit with --data"),
    (f"{S} --teacher teacher --data good.npz", 2, "do not fit its architecture"),
    (f"{S} --teacher nomodule:thing --data digits", 2, "No module named 'nomodule'"),
    (f"{S} --teacher mine:nope --data digits", 2, "has no attribute 'nope'"),
    (f"{S} --teacher mine: --data digits", 2, "must name something importable"),
    (f"{S} --teacher :x --data digits", 2, "must name something importable"),
    (f"{S} --teacher mine:number --data digits", 2, "must be a torch nn.Module, got int"),
    (f"{S} --teacher mine:nothing --data digits", 2, "must be a torch nn.Module, got NoneType"),
    (f"{S} --teacher mine:bad --data digits", 2, "raised ValueError: in factory"),
    (f"{S} --teacher mine:needs --data digits", 2, "missing 1 required positional argument"),
    (f"{S} --teacher mine:Flat", 2, "add --data"),
    (f"{S} --teacher mine:Wrong --data digits", 2, "must put out (rows, classes) = (2, 10) logits"),
    (f"{S} --teacher mine:Raises --data digits", 2, "the teacher raised on rows of shape (2, 1, 8, 8)"),
    (f"{S} --teacher mine:Flat --data good.npz", 2, "the teacher raised on rows of shape (2, 6)"),
    (f"{S} --teacher mine:Guesses --data digits", 2, "must know more than chance"),
    (f"{S} --teacher mine:Constant --data digits", 2, "but the teacher has no params; give a number"),
    (f"{S} --teacher missing:x --data digits", 2, "No module named 'nothing_of_that_name'"),
    (f"{S} --teacher syntax:x --data digits", 2, "SyntaxError"),
    (f"{S} --teacher boom:x --data digits", 2, "ZeroDivisionError"),
    (f"{S} --teacher models:/nope/1", 2, "needs its data"),
    # ---- data
    (f"{S} --teacher fit:mlp --data nowhere", 2, "unknown data 'nowhere'"),
    (f"{S} --teacher fit:mlp --data ''", 2, "must be"),
    (f"{S} --teacher fit:mlp --data nan.npz", 2, "first in row 3"),
    (f"{S} --teacher fit:mlp --data float.npz", 2, "y_train must be integers, got float64"),
    (f"{S} --teacher fit:mlp --data negative.npz", 2, "must be 0 or more, got -1"),
    (f"{S} --teacher fit:mlp --data one.npz", 2, "one class only"),
    (f"{S} --teacher fit:mlp --data few.npz", 2, "at least 3 samples"),
    (f"{S} --teacher fit:mlp --data gap.npz", 2, "class 1 is missing"),
    (f"{S} --teacher fit:mlp --data short.npz", 2, "must be equally long, got 200 and 7 rows"),
    (f"{S} --teacher fit:mlp --data names.npz", 2, "must hold 'x_train'"),
    (f"{S} --teacher fit:mlp --data noise.npz", 2, "not a zip file"),
    (f"{S} --teacher fit:mlp --data empty.npz", 2, "must be an .npz file"),
    (f"{S} --teacher fit:mlp --data objects.npz", 2, "must be an .npz file of plain arrays"),
    (f"{S} --teacher fit:mlp --data torchvision:CIFAR10", 2, "needs root="),
    # ---- names in a space
    (f"{T} --space digts", 2, "did you mean 'digits'?"),
    (f"{T} --space gone.yaml", 2, "must be readable"),
    (f"{T} --space low.yaml", 2, "low.yaml:5: low < high must hold for 'optim.lr'"),
    (f"{T} --space log.yaml", 2, "log.yaml:5: a log range must begin above 0"),
    (f"{T} --space condition.yaml", 2, "condition.yaml:5: a condition of 'optim.lr' must be on a field earlier"),
    (f"{T} --space unknown.yaml", 2, "did you mean 'optim.lr'?"),
    (f"{T} --space objective.yaml", 2, "did you mean 'kd'?"),
    (f"{T} --space family.yaml", 2, "did you mean 'mlp'?"),
    (f"{T} --objectives kdd", 2, "did you mean 'kd'?"),
    (f"{T} --objectives ''", 2, "--objectives must name at least one"),
    (f"{T} --objectives nomodule:Loss", 2, "must be importable"),
    (f"{T} --objectives boom:Loss", 2, "ZeroDivisionError"),
    (f"{T} --students resnte", 2, "did you mean 'resnet'?"),
    (f"{T} --students ,", 2, "--students must name at least one"),
    (f"{T} --students mlp,mlp", 2, "different names"),
    (f"{T} --students nomodule:Net", 2, "cannot be imported"),
    (f"{T} --students boom:Net", 2, "ZeroDivisionError"),
    (f"{T} --students mine:nope", 2, "has no 'nope'"),
    (f"{T} --students mine:number", 2, "is a int"),
    (f"{T} --students mine:needs", 2, "needs 'size'"),
    (f"{T} --students mine:bad", 2, "ValueError: in"),
    (f"{T} --students mine:Raises", 2, "RuntimeError: boom"),
    (f"{T} --students mine:Wrong", 2, "must put out 10 classes"),
    # ---- limits and settings
    (f"{T} --constraint params", 2, "must be NAME=LIMIT"),
    (f"{T} --constraint parms=5k", 2, "did you mean 'params'?"),
    (f"{T} --constraint params=-5", 2, "must be a positive number"),
    (f"{T} --constraint params=teacher/0", 2, "must be a positive number"),
    (f"{T} --constraint params=10", 2, "the smallest possible are"),
    (f"{T} --constraint flops=1", 2, "the smallest possible are"),
    (f"{T} --epochs 0", 2, "epochs must be at least 1"),
    (f"{T} --epochs few", 2, "not a valid integer"),
    (f"{T} --seed -1", 2, "a seed must be"),
    (f"{T} --lanes 0", 2, "lanes must be at least 1"),
    (f"{T} --lanes 2", 2, "one lane, got lanes=2"),
    (f"{T} --executor ry", 2, "did you mean 'ray'?"),
    (f"{T} --device cdua", 2, "did you mean 'cuda'?"),
    (f"{T} --device cuda:99", 2, "is not there"),
    (f"{T} --ablation atuo", 2, "did you mean 'auto'?"),
    (f"{T} --ray-address auto", 2, "the inline executor has no cluster"),
    (f"{T} --name a/b", 2, "a name must do for a folder"),
    # ---- folders
    (f"{T} --run-dir run", 1, "holds a search already; continue it with autokd.resume"),
    (f"{T} --run-dir full", 1, "is not empty"),
    (f"{T} --run-dir file", 1, "cannot be written"),
    (f"{T} --run-dir /dev/null/x", 1, "cannot be written"),
    # ---- tracking and clusters
    ("search --teacher teacher --budget 3trials --tracking-uri nope://x", 1, "unknown scheme"),
    ("search --teacher teacher --budget 3trials --tracking-uri ./mlruns", 1, "MLflow refuses folders"),
    ("search --teacher teacher --budget 3trials --no-tracking --ray-address 127.0.0.1:1", 1, "no Ray cluster answers"),
    # ---- resume
    ("resume", 2, "Missing argument 'RUN_DIR'"),
    ("resume nowhere", 1, "holds no ledger.jsonl"),
    ("resume folder", 1, "holds no ledger.jsonl"),
    ("resume blank", 1, "must begin with a search"),
    ("resume headless", 1, "must begin with a search"),
    ("resume without_teacher --budget 3trials", 1, "does not hold its teacher"),
    ("resume run --budget 30s", 2, "must be in trials as before"),
    ("resume run --budget nope", 2, "a positive number and a unit"),
    ("resume run --executor ry", 2, "did you mean 'ray'?"),
    ("resume run --lanes 0", 2, "lanes must be at least 1"),
    ("resume run --budget 3trials --teacher mine:Flat --data digits", 1, "goes on with the teacher and data it began"),
    # ---- distill
    (f"{D} nowhere.json", 2, "cannot be read"),
    (f"{D} full", 2, "cannot be read: Is a directory"),
    (f"{D} bad.json", 2, "a recipe must be JSON"),
    (f"{D} binary.json", 2, "cannot be read: not text"),
    (f"{D} list.json", 2, "must be a JSON object"),
    (f"{D} family.json", 2, "did you mean 'resnet'?"),
    (f"{D} field.json", 2, "did you mean 'width'?"),
    (f"{D} {GOOD} --epochs 0", 2, "epochs must be at least 1"),
    (f"{D} {GOOD} --out file", 1, "cannot be written"),
    # ---- what was found
    ("show nowhere", 1, "must hold ledger.jsonl"),
    ("show headless", 1, "must begin with a search"),
    ("show run --top 0", 2, "not in the range"),
    ("report nowhere", 1, "must hold ledger.jsonl"),
    ("report run --out file", 1, "File exists: file"),
    ("export run", 2, "Missing argument 'PATH'"),
    ("export without_student s.onnx", 1, "holds no student"),
    ("export run s.xyz", 1, "known: .onnx"),
    ("export run student", 1, "must name its format"),
    ("ui --port 70000", 2, "not in the range"),
    ("ui --tracking-uri http://127.0.0.1:1", 1, "is a server already"),
    ("spaces nope", 2, "unknown space 'nope'"),
    ("doctor extra", 2, "unexpected extra argument"),
]


@pytest.mark.parametrize(("line", "code", "said"), LINES, ids=[line or "nothing" for line, _, _ in LINES])
def test_a_wrong_command_line_is_told_in_one_line(
    line: str,
    code: int,
    said: str,
    world: Path,
    no_training: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["autokd", *shlex.split(line)])
    before = sorted(world.iterdir())
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == code, err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err and "Traceback" not in err, err
    assert no_training == [] and sorted(world.iterdir()) == before


@pytest.mark.parametrize("line", ["search --teacher digts --budget 3trials", "show nowhere", f"{D} bad.json"])
def test_so_it_is_in_a_process_of_its_own(line: str, world: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(autokd.__file__).parent.parent)}
    command = [sys.executable, "-c", "from autokd.cli import main; main()", *shlex.split(line)]
    done = subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# ---- in Python


def rows(count: int = 60, classes: int = 3) -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(size=(count, 4)).astype("float32"), np.arange(count) % classes


def test_labels_beyond_the_classes() -> None:
    x, y = rows()
    with pytest.raises(DataError, match="class"):
        autokd.Data(x, y, classes=2)
    with pytest.raises(DataError, match="class"):
        autokd.Data(x, y, x_test=x[:6], y_test=np.array([0, 1, 2, 3, 0, 1]))


def test_a_teacher_that_knows_nothing_is_refused(quick: Any, tmp_path: Path, no_training: list[str]) -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    with pytest.raises(TeacherError, match="must know more than chance"):
        quick(tmp_path / "run", teacher=autokd.Teacher(layer, autokd.Data(*rows(300))), constraints={"params": 500})
    assert no_training == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": None}, "must be text or a timedelta"),
        ({"budget": 90}, "must have a unit"),
        ({"space": 3}, "must be a name or a path"),
        ({"objectives": ["kdd"]}, "did you mean 'kd'"),
        ({"students": [nn.Linear(2, 2)]}, "is one module"),
        ({"students": [3]}, "is a int"),
        ({"students": []}, "name at least one"),
        ({"constraints": {"params": None}}, "must be a positive number"),
        ({"constraints": {"size": 3}}, "unknown constraint 'size'"),
        ({"constraints": {"params": 5}}, "the smallest possible are"),
        ({"seed": "7"}, "a seed must be"),
        ({"seed": -1}, "a seed must be"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"executor": "dask"}, "unknown executor 'dask'"),
        ({"ablation": "yes"}, "ablation must be 'auto', True or False, got 'yes'"),
        ({"name": "../up"}, "a name must do for a folder"),
        ({"tracking": True, "tracking_uri": "redis://x"}, "unknown scheme"),
    ],
    ids=str,
)
def test_wrong_arguments_of_search(
    options: dict[str, Any], said: str, quick: Any, tmp_path: Path, no_training: list[str]
) -> None:
    with pytest.raises(AutokdError, match=said) as told:
        quick(tmp_path / "run", **options)
    assert "\n" not in str(told.value)
    assert no_training == [] and not (tmp_path / "run").exists()


def test_run_folders_that_cannot_be_used(quick: Any, finished: Any, tmp_path: Path, no_training: list[str]) -> None:
    (tmp_path / "thing").write_text("")
    for folder, said in ((finished.run_dir, "continue it with autokd.resume"), (tmp_path, "is not empty")):
        with pytest.raises(AutokdError, match=said):
            quick(folder)
    assert no_training == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_ours(quick: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(AutokdError, match="cannot be written"):
            quick(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("place", [2, 5, 9, -2])
def test_a_corrupt_ledger_line_is_named_and_the_rest_is_used(place: int, copied: Path) -> None:
    path = copied / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[place] = lines[place][: len(lines[place]) // 2] + "\n"
    path.write_text("".join(lines))
    result = autokd.SearchResult(copied)
    assert len(result.problems) == 1 and f"ledger.jsonl:{place % len(lines) + 1}: " in result.problems[0]
    assert result.best is not None and len(result.history.trials) >= 10
    more = autokd.resume(copied, "1 trial", verbose=False)
    assert more.state == "finished" and more.problems == result.problems
    started = [event["trial"] for event in events_of(copied, "start")]
    assert len(started) == len(set(started))


def test_errors_know_what_they_are() -> None:
    """One line each, and all of one family, so that a caller can catch them."""
    x, y = rows()
    for wrong in (lambda: autokd.Data(x, y + 0.5), lambda: autokd.Data(x * np.nan, y), lambda: autokd.Data(x, y * 0)):
        with pytest.raises(InputError) as told:
            wrong()
        assert "\n" not in str(told.value) and isinstance(told.value, ValueError)
