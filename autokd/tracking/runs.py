"""What MLflow should show of a search, folded from its ledger: a run for it, one for each trial. No mlflow here.

    of the search   params    the `search` event, flattened
                    metrics   best_value (at the highest rung so far; step: reports so far), test/<role> (step: tests so far; their running mean),
                              importance/<field> of those above the noise, ablation/<change> (step: seeds; their mean)
                    tags      autokd.search_id, version, state, winner, reason, importance (in words)
    of a trial      params    the recipe, flat; seed, params, flops
                    metrics   val/<metric>, term/<name>, train/loss, seconds, lr, value, test (step: epoch)
                    tags      autokd.search_id, trial_id, role, source, recipe_id, rung, state, reason, message, retries, change (of an ablation),
                              setting (precision and layout of its students), notes

A run is RUNNING only while something trains: a paused trial has FINISHED until it is resumed, so that a search that is
killed and never resumed leaves no more open runs than it had lanes. The same events always give the same points (names,
values, times, steps), so that delivering them twice changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from autokd.ablation import ROLE as ABLATION
from autokd.ablation import ablations, change_of
from autokd.finals import standing
from autokd.history import History, Trial
from autokd.importance import importance
from autokd.ledger import Event
from autokd.tracking.address import redact

SEARCH = ""  # the key of the search's own run; trials go by their id
POINTS = 100  # about so many points of each metric of a trial: a page of curves slows down with more
STATUS = {"running": "RUNNING", "interrupted": "KILLED", "failed": "FAILED"}  # by state; all else has FINISHED

_NOT_PARAMS = {"n", "time", "elapsed", "event", "search_id", "name", "plan", "space", "warm_start"}


@dataclass
class News:
    """What one run has yet to be told."""

    metrics: list[tuple[str, float, int, int]] = field(
        default_factory=list
    )  # name, value, milliseconds since 1970, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Runs:
    """The fold: events go in by `add`; `news` is taken out by whoever delivers it."""

    def __init__(self) -> None:
        self.history = History()
        self.news: dict[str, News] = {}
        self.started: dict[str, int] = {}  # milliseconds since 1970, by key; in the order the runs began
        self.touched: dict[str, int] = {}  # of the last event about that run
        self._cut: set[str] = set()  # trials that were running when the search was interrupted
        self._reports = 0
        self._best: tuple[int, float, float, int] | None = None
        self._tests: dict[str, list[float]] = {}

    def add(self, event: Event) -> None:
        """Fold one event in. Events about unknown trials are passed over, as in `History`."""
        now = int(event["time"] * 1000)
        self.started.setdefault(SEARCH, now)
        self.touched[SEARCH] = now
        self._note_cut(event)
        self.history.add(event)
        trial = self.history.trials.get(event.get("trial") or "")
        if trial is not None:
            self.started.setdefault(trial.id, now)
            self.touched[trial.id] = now
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None and (trial is not None or event["event"] in ("search", "finals", "test", "finish")):
            handler(event, trial, now)

    # ---- what a run is

    def state(self, key: str, over: bool) -> str:
        """In a word. `over`: the process that searched has ended, so that nothing can be running."""
        if key == SEARCH:
            finished = self.history.finished
            if finished is None:
                return "interrupted" if over else "running"
            return "interrupted" if _interrupted(finished) else "finished"
        state = self.history.trials[key].state
        return "interrupted" if key in self._cut or (over and state == "running") else state

    def name(self, key: str) -> str:
        return key or str(self.history.head.get("name") or "search")

    def identity(self, key: str, search_id: str) -> dict[str, str]:
        """The tags a run is born with, by which it is found again."""
        if key == SEARCH:
            version = str(self.history.head.get("versions", {}).get("autokd", "unknown"))
            return {"autokd.search_id": search_id, "autokd.version": version}
        trial = self.history.trials[key]
        tags = {
            "autokd.search_id": search_id,
            "autokd.trial_id": trial.id,
            "autokd.role": trial.role,
            "autokd.source": trial.source,
            "autokd.recipe_id": trial.recipe.id,
        }
        return tags | ({"autokd.change": change_of(trial)} if trial.role == ABLATION else {})

    # ---- one method per event that says something new

    def _on_search(self, event: Event, _: Trial | None, now: int) -> None:
        told = {name: value for name, value in event.items() if name not in _NOT_PARAMS}
        space = event.get("space")
        earlier = (event.get("warm_start") or {}).get("sources") or ()
        told["warm_start"] = ", ".join(str(each.get("name")) for each in earlier) or None
        told["space"] = space.get("name") if isinstance(space, dict) else space
        self._of(SEARCH).params.update(list(_flat("", told))[:100])

    def _on_start(self, event: Event, trial: Trial, now: int) -> None:
        told = trial.recipe.flat() | {"seed": trial.seed} | {name: n for name, n in asdict(trial.cost).items() if n}
        self._of(trial.id).params.update({_name(name): str(value)[:500] for name, value in told.items()})

    def _on_probe(self, event: Event, trial: Trial, now: int) -> None:
        self._of(trial.id).metrics.append(("latency_ms", float(event["latency_ms"]), now, 0))

    def _on_rung(self, event: Event, trial: Trial, now: int) -> None:
        news, last = self._of(trial.id), event["epoch"]
        stride = math.ceil(max(self.history.rungs, default=1) / POINTS)
        for row in event["history"]:
            if row["epoch"] % stride == 0 or row["epoch"] == last:
                news.metrics += [(name, value, now, row["epoch"]) for name, value in _points(row)]
        news.metrics.append(("value", float(event["value"]), now, last))
        news.tags["autokd.rung"] = str(last)
        news.tags |= {"autokd.setting": event["precision"]} if "precision" in event else {}
        news.tags |= {"autokd.notes": "; ".join(event["notes"])[:2000]} if event.get("notes") else {}
        self._reports += 1
        if trial.role == ABLATION:
            self._tell_ablation(change_of(trial), now)
        if trial.role == "search" and (self._best is None or standing(trial) > self._best):
            self._best = standing(trial)
            self._of(SEARCH).metrics.append(("best_value", float(event["value"]), now, self._reports))

    def _on_retry(self, event: Event, trial: Trial, now: int) -> None:
        self._of(trial.id).tags["autokd.retries"] = str(trial.retries)

    def _on_fail(self, event: Event, trial: Trial, now: int) -> None:
        self._of(trial.id).tags |= {"autokd.reason": event["reason"], "autokd.message": str(event["message"])[:2000]}

    def _on_finals(self, event: Event, _: Trial | None, now: int) -> None:
        self._of(SEARCH).tags["autokd.winner"] = str(event["winner"])
        if event.get("front"):
            self._of(SEARCH).tags["autokd.front"] = ", ".join(map(str, event["front"]))[:2000]

    def _on_test(self, event: Event, trial: Trial | None, now: int) -> None:
        values = self._tests.setdefault(event["role"], [])
        values.append(float(event["value"]))
        name = _name(f"test/{event['role']}")
        self._of(SEARCH).metrics.append((name, sum(values) / len(values), now, len(values)))
        if trial is not None:
            self._of(trial.id).metrics.append(("test", values[-1], now, trial.epoch))

    def _on_finish(self, event: Event, _: Trial | None, now: int) -> None:
        news = self._of(SEARCH)
        news.tags["autokd.reason"] = str(event["reason"])
        if self._best is not None:
            news.metrics.append(("best_value", float(self._best[1]), now, self._reports))
        found = importance(self.history)
        if found is not None:
            news.tags["autokd.importance"] = found.sentence()[:2000]
            news.metrics += [(_name(f"importance/{e.name}"), e.share, now, self._reports) for e in found.above_noise]

    # ---- small parts

    def _tell_ablation(self, change: str, now: int) -> None:
        """The mean change of the score so far, on the run of the search."""
        done = next((entry for entry in ablations(self.history) if entry.change == change), None)
        if done is not None:
            self._of(SEARCH).metrics.append((_name(f"ablation/{change}"), done.mean, now, done.n))

    def _of(self, key: str) -> News:
        return self.news.setdefault(key, News())

    def _note_cut(self, event: Event) -> None:
        if event["event"] == "session":
            self._cut.clear()
        elif event["event"] == "finish" and _interrupted(event["reason"]):
            self._cut = {trial.id for trial in self.history.running}


def _interrupted(reason: str) -> bool:
    return "interrupt" in str(reason).lower()


def _points(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of one epoch, under legal names."""
    named = {f"val/{name}": value for name, value in row.get("metrics", {}).items()}
    named |= {f"term/{name}": value for name, value in row.get("terms", {}).items()}
    named["train/loss"] = row.get("loss")
    named |= {name: row[name] for name in ("seconds", "lr") if name in row}
    for name, value in named.items():
        if isinstance(value, int | float):
            yield _name(name), float(value)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted names and short strings; what is None is left out."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    elif value is not None:
        yield _name(prefix), redact(value if isinstance(value, str) else json.dumps(value))[:500]


def _name(text: str) -> str:
    """As MLflow allows: letters, digits, _ - . space and / (not doubled), at most 250."""
    return re.sub(r"[^\w\-. /]|/(?=/)", "_", text)[:250]
