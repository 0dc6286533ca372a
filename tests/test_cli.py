"""The command line: what it offers, what it prints for people and programs, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import events_of

import autokd
from autokd.cli import cli, main

OPTIONS = {  # growing this is a decision, not an accident
    "autokd": "--version",
    "search": "--teacher --data --root --smooth --budget --space --objectives --students --constraint --goals --prefer --warm-start --epochs --seed --run-dir --name "
    "--executor --lanes --device --tracking --tracking-uri --ray-address --tape --tape-limit --ablation --json --quiet",
    "resume": "RUN_DIR --budget --teacher --data --root --executor --lanes --tracking-uri --ray-address --json --quiet",
    "distill": "--teacher --data --root --smooth --recipe --epochs --seed --out --json --quiet",
    "show": "RUN_DIR --top --sync --json",
    "report": "RUN_DIR --out",
    "export": "RUN_DIR PATH --overwrite --prefer",
    "ui": "--tracking-uri --port --host",
    "spaces": "NAME --json",
    "doctor": "--json",
    "tape": "--dir",
}
SMALL = "--budget 3trials --epochs 2 --executor inline --no-tracking --students mlp --constraint params=teacher/2"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autokd", *words])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


# ---- what it offers


def options(command: click.Command) -> str:
    names = [p.name.upper() if isinstance(p, click.Argument) and p.name else p.opts[0] for p in command.params]
    return " ".join(name for name in names if name != "--help")


def test_commands_and_options_are_these() -> None:
    found = {"autokd": options(cli)} | {name: options(command) for name, command in cli.commands.items()}
    assert {name: set(text.split()) for name, text in found.items()} == {
        name: set(text.split()) for name, text in OPTIONS.items()
    }


@pytest.mark.parametrize("name", [*cli.commands, ""])
def test_help_teaches(name: str, call: Any) -> None:
    code, out, err = call(*name.split(), "--help")
    assert code == 0 and err == "" and out.startswith(f"Usage: autokd {name}".rstrip())
    command = cli.commands.get(name, cli)
    assert command.help and len(command.help.split()) > 5
    assert all(len(line) <= 120 for line in out.splitlines())


def test_every_option_that_needs_words_has_them() -> None:
    spoken_for = {"--seed", "--port"}  # their names say it
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.opts[0] not in spoken_for:
                assert option.help, f"{name} {option.opts[0]}"


def test_nothing_given_shows_the_help(call: Any) -> None:
    code, out, err = call()
    assert (code, err) == (0, "") and "search" in out and "doctor" in out


def test_version(call: Any) -> None:
    assert call("--version") == (0, f"autokd, version {autokd.__version__}\n", "")


# ---- for programs


def test_search_resume_show_in_json(
    call: Any, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("search", "--teacher", str(teacher_folder), *SMALL.split(), "--run-dir", "run", "--json")
    first = json.loads(out)
    assert code == 0 and err == "" and first["state"] == "finished" and first["best"]["n"] == 3
    code, out, err = call("resume", "run", "--budget", "1 trial", "--json")
    second = json.loads(out)
    assert code == 0 and err == "" and second["budget"] == {"kind": "trials", "amount": 4.0}
    code, out, err = call("show", "run", "--json")
    third = json.loads(out)
    assert code == 0 and err == ""
    assert {k: v for k, v in third.items() if k != "run_dir"} == {k: v for k, v in second.items() if k != "run_dir"}


def test_distill_in_json(call: Any, teacher_folder: Path, finished: Any, tmp_path: Path) -> None:
    recipe = finished.run_dir / "student" / "recipe.json"
    words = ["distill", "--teacher", str(teacher_folder), "--recipe", str(recipe), "--epochs", "2", "--json"]
    code, out, err = call(*words, "--out", str(tmp_path / "student"))
    told = json.loads(out)
    assert code == 0 and err == "" and told["epochs"] == 2 and len(told["history"]) == 2
    assert list((tmp_path / "student").glob("*.safetensors"))


def test_spaces_and_doctor_in_json(call: Any) -> None:
    spaces = json.loads(call("spaces", "--json")[1])
    assert {"digits", "classification"} <= {space["name"] for space in spaces}
    assert [space["name"] for space in json.loads(call("spaces", "digits", "--json")[1])] == ["digits"]
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert code == (1 if found["missing"] else 0) and found["autokd"] == autokd.__version__ and found["lanes"] >= 1


# ---- for people


def test_a_search_shows_plan_progress_and_table(
    call: Any, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("search", "--teacher", str(teacher_folder), *SMALL.split())
    assert code == 0 and err == ""
    for word in ("validation accuracy", "Plan", "rungs", "lanes", "new best", "Result of", "same architecture"):
        assert word in out, word
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"run folder  {run_dir}" in out and f"report      {run_dir}/report/index.html" in out
    assert max(map(len, out.splitlines())) < 200


def test_quiet_says_nothing(call: Any, teacher_folder: Path, tmp_path: Path) -> None:
    words = ["search", "--teacher", str(teacher_folder), *SMALL.split(), "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert call(*words) == (0, "", "")


def test_show(call: Any, finished: Any) -> None:
    code, out, _ = call("show", str(finished.run_dir), "--top", "3")
    assert code == 0 and "Best 3 of" in out and "finished: a student of" in out


def test_report_and_export(call: Any, copied: Path, tmp_path: Path) -> None:
    code, out, _ = call("report", str(copied), "--out", str(tmp_path / "page"))
    assert code == 0 and Path(out.strip()).exists()
    path = tmp_path / "student.safetensors"
    assert call("export", str(copied), str(path))[:2] == (0, f"{path}\n")
    code, _, err = call("export", str(copied), str(path))
    assert code == 1 and err.count("\n") == 1 and "overwrite" in err
    assert call("export", str(copied), str(path), "--overwrite")[0] == 0


def test_spaces_prints_the_fields(call: Any) -> None:
    code, out, _ = call("spaces", "digits")
    assert code == 0 and "terms.kd.weight" in out and "first: KD (Hinton 2015)" in out


def test_show_delivers_what_mlflow_has_not_received(call: Any, finished: Any) -> None:
    code, out, err = call("show", str(finished.run_dir), "--sync", "--json")
    assert code == 0 and json.loads(out)["state"] == "finished" and "MLflow: " in err


# ---- how it ends


def test_no_student_is_exit_code_3(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaking.py").write_text(
        "from pathlib import Path\n\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = nn.Linear(64, 10)\n\n    def forward(self, x):\n"
        "        if len(x) > 2 and Path('run/ledger.jsonl').exists():\n            raise RuntimeError('breaks')\n"
        "        return self.layer(x.flatten(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    small = SMALL.replace("mlp", "breaking:Net")
    monkeypatch.setattr("autokd.teacher.FIT_EPOCHS", 3)
    code, out, err = call("search", "--teacher", "fit:mlp", "--data", "digits", *small.split(), "--run-dir", "run")
    assert code == 3 and err == "" and "no student" in out


def test_interrupting_is_exit_code_130(teacher_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from autokd.cli import main; main()", "search", "--teacher", str(teacher_folder)]
    words = (
        f"--budget 10m --executor inline --no-tracking --students mlp --constraint params=5k --run-dir {tmp_path}/run"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(autokd.__file__).parent.parent)}
    process = subprocess.Popen(
        [*command, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        end = time.monotonic() + 50
        while time.monotonic() < end and not events_of(tmp_path / "run", "rung"):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and err.strip() == ""
    assert f"autokd resume {tmp_path}/run" in out


def test_a_closed_pipe_is_no_error(finished: Any) -> None:
    program = (
        f"from autokd.cli import main; import sys; sys.argv = ['autokd', 'show', {str(finished.run_dir)!r}]; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(autokd.__file__).parent.parent)}
    command = f'"{sys.executable}" -c "{program}" | head -c 5'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == ""


def test_ui_names_another_port_if_this_one_is_taken(call: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("ui", "--port", str(port), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert code == 1 and f"port {port} on 127.0.0.1 cannot be used" in err and "try port" in err
