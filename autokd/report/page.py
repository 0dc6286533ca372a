"""The report's page: one HTML file that needs no network, with the figures as PNG files beside it.

Every word that comes from a user or a ledger is escaped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from autokd import words
from autokd.finals import standing
from autokd.history import Trial
from autokd.report.charts import draw_charts
from autokd.report.fronts import front_head, front_rows
from autokd.report.images import write_images
from autokd.report.style import TITLES
from autokd.report.tables import write_tables
from autokd.report.views import MOST_CURVES
from autokd.result import Result
from autokd.summary import ablation_words, plan_lines, row_words, state_words, tally_words

TOP = 20
CAPTIONS = {
    "pareto": "Each trial at the last epoch it reached; large dots were trained to the end. "
    "Values of different epochs are not comparable with each other.",
    "front": "Trials at the highest rung; the orange ones are those than which no other is better in every goal. Controls have the "
    "winner's architecture.",
    "finals": "One dot for each seed, bars are means. All students have the same architecture.",
    "timeline": "One dot for each time a trial was measured, darker with more epochs.",
    "curves": "Dotted lines are the rungs, where trials are compared and the better ones go on. "
    f"Of more than {MOST_CURVES} trials, those trained longest and an even choice of the rest are drawn.",
    "importance": "How much of being among the best each field explains by itself (PED-ANOVA), with 95 % bootstrap intervals. "
    "A field that exists only under a condition is judged among the trials that have it. About trials of one rung, "
    "which the rungs below have chosen; effects that only pairs of fields have are not seen.",
    "ablation": "The winner trained again with one thing changed, minus the winner trained with the same seed; one dot for "
    "each seed. Of twenty changes that do nothing, one is expected to look like more than noise.",
    "strips": "Search trials compared at the same epoch, fields with the strongest relation first. "
    "ρ is Spearman's rank correlation. A relation is no cause: the search tried promising values more often.",
    "costs": "Training seconds summed over lanes. The rest went into waiting for work, starting and failed trials.",
}
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5f6670; --back: #fff; --card: #f6f7f9; --line: #dfe3e8;
  --accent: #7b3fa0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --soft: #9aa2ad; --back: #15171a; --card: #1e2126;
  --line: #343941; --accent: #c79be3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.1rem; color: var(--soft); font-weight: 600; margin: 0; }
.headline { font-size: 1.65rem; line-height: 1.3; font-weight: 650; margin: .3rem 0 .8rem; max-width: 56rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; }
p.note, figcaption { color: var(--soft); font-size: .9rem; margin: .3rem 0 .8rem; max-width: 50rem; }
figure { margin: 0; }
.chart { min-width: 34rem; }
.chips span { display: inline-block; background: var(--card); border: 1px solid var(--line); border-radius: 1rem;
  padding: .1rem .7rem; margin: 0 .4rem .4rem 0; font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .85rem; }
th, td { padding: .42rem .8rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.winner td { font-weight: 650; }
tr.winner td:first-child { color: var(--accent); }
ul { padding-left: 1.2rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9em; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""
# Gives plotly's texts the reader's light or dark colours, also when they change
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const text = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
  document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.relayout(plot, {"font.color": text}));
}
dark.addEventListener("change", paint);
addEventListener("load", paint);
"""


def write_report(result: Result, folder: str | Path) -> Path:
    """Write index.html, recipe.json, the tables and the PNGs into `folder` (made if missing); the path of the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_images(result, folder)
    if result.leading is not None:
        recipe = json.dumps(result.leading.recipe.to_dict(), indent=2)
        (folder / "recipe.json").write_text(recipe + "\n", encoding="utf-8")
    if result.pareto():
        found = json.dumps([member.to_dict() for member in result.pareto()], indent=2)
        (folder / "front.json").write_text(found + "\n", encoding="utf-8")
    write_tables(result, folder)
    path = folder / "index.html"
    path.write_text(_page(result, folder), encoding="utf-8")
    return path


def _page(result: Result, folder: Path) -> str:
    charts = draw_charts(result)
    body = [
        _header(result),
        _section("Result", _final_table(result) + _honest_words(result)),
        _note("Charts: hover for the recipe, drag to zoom, double-click to reset." if charts else ""),
        _chart("pareto", charts),
        _front(result, charts),
        _section("The winning recipe", _recipe(result, folder)),
        *(_chart(name, charts) + _after(name, result) for name in TITLES if name not in ("pareto", "front")),
        _section(f"Best trials of {len(result.history.trials)}", _top_trials(result)),
        _section("Failures", _failures(result)),
        _section("Plan and settings", _settings(result)),
        _section("Notes", _notes(result)),
    ]
    title = escape(f"autokd: {result.name}")
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    script = f"<script>{SCRIPT}</script>" if charts else ""
    return (
        f'<!doctype html>\n<html lang="en"><head>{meta}<title>{title}</title><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + f"\n<footer>Written by autokd from {escape(str(result.run_dir))}.</footer>\n{script}</body></html>\n"
    )


# ---- parts of the page


def _header(result: Result) -> str:
    history = result.history
    facts = [
        result.state + (f": {history.finished}" if history.finished else ""),
        f"{words.duration(history.elapsed)} of {words.budget(history.budget or result.head.get('budget', {}))}",
        state_words(history.trials.values()),
        f"{history.epochs} epochs",
        f"seed {result.head.get('seed', '?')}",
    ]
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    headline = result.headline()
    headline = escape(headline[0].upper() + headline[1:])
    return (
        f"<header><h1>Search for a small student of {escape(result.name)}</h1>"
        f'<p class="headline">{headline}.</p><div class="chips">{chips}</div></header>'
    )


def _final_table(result: Result) -> str:
    metric = result.metric
    head = ("network", "parameters", "FLOPs", f"validation {metric}", f"test {metric}", "seeds", "epochs", "smaller")
    rows = [(row.role, row_words(row, metric)) for row in result.rows()]
    return _table(head, [cells for _, cells in rows], left=1, classes=[role for role, _ in rows])


def _honest_words(result: Result) -> str:
    gains = result.gains()
    if not gains:
        return _note(
            "No control was measured at equal epochs, so what the search and distillation brought is not known yet."
        )
    items = "".join(f"<li>{escape(gain.sentence(result.metric))}</li>" for gain in gains)
    return f"<ul>{items}</ul>" + _note(
        "Means ± standard deviation over seeds. Differences are paired by seed; one counts as larger than the noise "
        "if its 95 % paired t interval excludes 0. The recipe was chosen by validation, so the test figures decide."
    )


def _chart(name: str, charts: dict[str, str]) -> str:
    if name not in charts:
        return ""
    caption = f"<figcaption>{escape(CAPTIONS[name])}</figcaption>"
    return _section(
        TITLES[name], f'<figure>{caption}<div class="scroll"><div class="chart">{charts[name]}</div></div></figure>'
    )


def _front(result: Result, charts: dict[str, str]) -> str:
    """Chart and table of the front; nothing where there is one goal."""
    rows = front_rows(result)
    if not rows:
        return ""
    prefer = result.head.get("prefer")
    told = f"Preferred: {prefer}." if prefer else "No preference was stated: result.choose(…) takes one of them."
    note = f"{told} Each stands here by its value in the search, which favours the lucky; the retrained means do not."
    return _chart("front", charts) + _note(note) + _table(front_head(result), rows, left=2)


def _after(name: str, result: Result) -> str:
    """What is said below a figure."""
    if name == "importance":
        found = result.importance()
        told = "" if found is None else _note(f"{found.sentence()[0].upper()}{found.sentence()[1:]}.")
        return told + _methods(result)
    return _ablation(result) if name == "ablation" and result.ablation() else ""


def _methods(result: Result) -> str:
    """How far each method came; nothing where the search had no choice."""
    rows = [tally_words(entry, result.metric) for entry in result.methods()]
    if not rows:
        return ""
    head = (
        "part",
        "method",
        "begun",
        "past the first rung",
        "to the end",
        "beats at the first rung",
        f"best {result.metric}",
    )
    note = _note(
        "Search trials by what they had; one of several losses counts for each. What they beat at the first rung, the share of all "
        "trials in the median, compares like with like; the best value is of any epoch, and what came far was trained for longer."
    )
    return _section("Which methods came far", note + _table(head, rows, left=2))


def _ablation(result: Result) -> str:
    head = ("changed", "instead of", "", f"validation {result.metric}", "95 % interval", "seeds")
    rows = [ablation_words(entry, result.metric) for entry in result.ablation()]
    return _table(head, rows, left=3)


def _recipe(result: Result, folder: Path) -> str:
    best = result.leading
    if best is None:
        return _note("No trial has a value yet.")
    cost = f"Trial {best.trial}, {words.flops(best.flops)}, {words.duration(best.seconds)} of training."
    recipe = json.dumps(best.recipe.to_dict(), indent=2)
    return (
        f"<p><strong>{escape(words.recipe_words(best.recipe))}</strong></p>{_note(cost)}"
        f"<pre>{escape(_commands(result, folder))}</pre>"
        f"<details><summary>recipe {best.recipe.id} as JSON</summary><pre>{escape(recipe)}</pre></details>"
    )


def _commands(result: Result, folder: Path) -> str:
    saved = result.run_dir / "teacher"
    teacher = shlex.quote(str(saved if saved.is_dir() else result.teacher.get("name", "TEACHER")))
    run = shlex.quote(str(result.run_dir))
    lines = [
        "# the student as one file",
        f"autokd export {run} student.onnx",
        "# train this recipe again",
        f"autokd distill --teacher {teacher} --recipe {shlex.quote(str(folder / 'recipe.json'))}",
        "# go on searching",
        f"autokd resume {run} --budget 10m",
    ]
    return "\n".join(lines)


def _top_trials(result: Result) -> str:
    trials = sorted((t for t in result.history.trials.values() if t.values), key=standing, reverse=True)
    if not trials:
        return _note("No trial has a value yet.")
    head = ("trial", "role", "recipe", "epoch", result.metric, "parameters", "FLOPs", "training")
    return _table(head, [_trial_cells(trial, result.metric) for trial in trials[:TOP]], left=3)


def _trial_cells(trial: Trial, metric: str) -> tuple[str, ...]:
    size = words.count(trial.params), words.flops(trial.flops)
    value = words.score(trial.value, metric=metric)
    recipe = words.recipe_words(trial.recipe)
    return (trial.id, trial.role, recipe, str(trial.epoch), value, *size, words.duration(trial.seconds))


def _failures(result: Result) -> str:
    failed = [trial for trial in result.history.trials.values() if trial.state == "failed"]
    if not failed:
        return _note("None.")
    rows = []
    for reason, number in sorted(result.failures.items(), key=lambda item: -item[1]):
        example = next(trial for trial in failed if (trial.reason or "unknown") == reason)
        rows.append((reason, str(number), f"{example.id}: {(example.message or '')[:200]}"))
    return _table(("reason", "trials", "for example"), rows, left=3)


def _settings(result: Result) -> str:
    head = result.head
    lines = plan_lines(head.get("plan") or {}, head)
    lines += [("seed", str(head.get("seed", "?"))), ("search", str(head.get("search_id", "?")))]
    if result.history.final_seeds:
        lines.append(("final seeds", ", ".join(map(str, result.history.final_seeds))))
    lines += [("data fingerprint", str(head["data"]["fingerprint"]))] if head.get("data", {}).get("fingerprint") else []
    lines += [("versions", ", ".join(f"{name} {version}" for name, version in (head.get("versions") or {}).items()))]
    return _table(("", ""), lines, left=2)


def _notes(result: Result) -> str:
    plan, data = result.head.get("plan") or {}, result.head.get("data") or {}
    notes = [*_list(plan.get("notes")), *_list(data.get("notes")), *result.problems]
    return f"<ul>{''.join(f'<li>{escape(str(note))}</li>' for note in notes)}</ul>" if notes else _note("None.")


# ---- small things


def _list(notes: Any) -> list[Any]:
    return list(notes) if isinstance(notes, list | tuple) else []


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int, classes: Sequence[str] = ()) -> str:
    """The first `left` columns hold words, the others numbers."""
    align = ["" if place < left else ' class="n"' for place in range(len(head))]
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td{css}>{escape(cell)}</td>" for css, cell in zip(align, row, strict=True))
        name = f' class="{escape(classes[place])}"' if classes else ""
        lines.append(f"<tr{name}>{cells}</tr>")
    titles = "".join(f"<th{css}>{escape(cell)}</th>" for css, cell in zip(align, head, strict=True))
    heading = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{heading}<tbody>{"".join(lines)}</tbody></table></div>'
