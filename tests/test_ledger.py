"""The ledger: what is written is read, damage is named, time adds up over sessions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import Clock

from autokd.errors import LedgerError
from autokd.ledger import Ledger, read_events


def three_events(path: Path) -> None:
    ledger = Ledger(path, Clock())
    for trial in ("a", "b", "c"):
        ledger.append("resume", trial=trial, to=3)
    ledger.close()


def trials(path: Path) -> list[str]:
    return [event["trial"] for event in read_events(path)[0]]


def test_events_are_on_disk_as_they_happen_and_read_back_as_returned(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Clock())
    event = ledger.append("finals", winner="t", seeds=[1], pair=(1, 2))
    assert read_events(path) == ([event], [], None)  # before it is closed
    assert event["pair"] == [1, 2] and event["n"] == 0  # as JSON has it
    assert ledger.append("retry", trial="t", message="é\n\u2028")["n"] == 1
    ledger.close()
    assert Ledger(path).events == ledger.events
    assert path.read_bytes().count(b"\n") == 2


def test_listeners_hear_what_comes_after_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l", Clock())
    ledger.append("resume", trial="a", to=1)
    heard: list[str] = []
    ledger.listen(lambda event: heard.append(event["trial"]))
    ledger.append("resume", trial="b", to=1)
    assert heard == ["b"]


def test_elapsed_counts_the_sessions_and_not_the_nights_between(tmp_path: Path) -> None:
    clock = Clock()
    first = Ledger(tmp_path / "l", clock)
    clock.now += 10
    assert first.append("resume", trial="a", to=1)["elapsed"] == pytest.approx(10)
    clock.now += 4  # killed: these seconds left no event
    first.close()
    clock.now += 86400
    second = Ledger(tmp_path / "l", clock)
    assert second.elapsed == pytest.approx(10)
    clock.now += 5
    assert second.append("resume", trial="b", to=1)["elapsed"] == pytest.approx(15)
    second.close()
    assert Ledger(tmp_path / "l", clock).elapsed == pytest.approx(15)


@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_cut_off_wherever_it_tore(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("torn") / "l"
    three_events(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    left = path.read_bytes()
    complete = left.count(b"\n")
    torn = not left.endswith(b"\n") and left != b""
    ledger = Ledger(path, Clock())
    assert [event["trial"] for event in ledger.events] == ["a", "b", "c"][:complete]
    assert len(ledger.problems) == torn
    assert not torn or "torn" in ledger.problems[0]
    ledger.append("resume", trial="d", to=3)
    ledger.close()
    assert trials(path) == [*["a", "b", "c"][:complete], "d"]
    assert Ledger(path).problems == []


@pytest.mark.parametrize(
    "line",
    [
        b"{not json",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        b"",
        b'{"event": "resume"}',
        b'{"event": "explode", "elapsed": 1}',
        b'{"event": "resume", "elapsed": "1"}',
        b'{"event": [], "elapsed": 1}',
        b"[" * 100_000,
        b'{"event": "resume", "elapsed": ' + b"9" * 5000 + b"}",
    ],
    ids=range(12),
)
def test_a_corrupt_line_is_named_and_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "l"
    three_events(path)
    lines = path.read_bytes().splitlines()
    lines[1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    ledger = Ledger(path, Clock())
    assert [event["trial"] for event in ledger.events] == ["a", "c"]
    (problem,) = ledger.problems
    assert problem.startswith(f"{path}:2: not an event, passed over: ") and len(problem) < len(str(path)) + 120
    assert "\n" not in problem


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l"
    three_events(path)
    path.write_bytes(path.read_bytes()[:-7])
    before = path.read_bytes()
    events, problems, cut = read_events(path)
    assert (len(events), len(problems), path.read_bytes()) == (2, 1, before)
    assert cut is not None and before[:cut].endswith(b"\n")


def test_a_missing_ledger_is_empty(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none") == ([], [], None)
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_a_ledger_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="must be writable.*choose another run_dir"):
        Ledger(tmp_path / "no" / "folder" / "l")


def test_nothing_half_written_reaches_the_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l", Clock())
    with pytest.raises(ValueError, match="unknown event"):
        ledger.append("explode")
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("test", role="teacher", trial=None, value=float("nan"))
    with pytest.raises(TypeError):
        ledger.append("test", role="teacher", trial=None, value=object())
    assert (tmp_path / "l").read_bytes() == b"" and ledger.events == []
    assert json.loads(json.dumps(ledger.append("finish", reason="done")))["n"] == 0
