"""Colours and words that charts and images share.

Families are coloured after Okabe and Ito (2008), told apart by colour-blind readers too; rungs from light to dark.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from autokd.ablation import Ablation
from autokd.report.views import Point, families

FAMILY_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#999999")
RUNG_COLOURS = ("#A6CEE3", "#7FB5DC", "#5A9BD5", "#3F80CC", "#3A66C4", "#4350C8")
TEACHER = "#C62828"
ROLE_COLOURS = {
    "teacher": TEACHER,
    "winner": "#7B3FA0",
    "no_kd": "#808080",
    "default_kd": "#A0642D",
    "ablation": "#3A8F8F",
}
ROLE_WORDS = {
    "teacher": "teacher",
    "winner": "winner",
    "no_kd": "no distillation",
    "default_kd": "default KD",
    "ablation": "ablation",
}
CONTROL_MARKERS = {"no_kd": "square", "default_kd": "triangle-up"}
CLEAR, FAINT, BETTER = "#7B3FA0", "#B8B8B8", "#2E8B57"  # more than noise, not told from it, better than the winner
FRONT = "#D55E00"
TITLES = {
    "pareto": "Quality against size",
    "front": "The front",
    "finals": "Final comparison",
    "timeline": "Best student over time",
    "curves": "Learning curves",
    "importance": "What mattered in the search",
    "ablation": "What the winner needs",
    "strips": "Which recipe values go with good trials",
    "costs": "Where the time went",
}


def colours_of(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each family, the most frequent first; beyond eight they repeat."""
    return {name: FAMILY_COLOURS[i % len(FAMILY_COLOURS)] for i, name in enumerate(families(points))}


def rung_colours(rungs: Collection[int]) -> dict[int, str]:
    """A shade for each rung, darker with more epochs."""
    last = len(RUNG_COLOURS) - 1
    return {rung: RUNG_COLOURS[round(i * last / max(1, len(rungs) - 1))] for i, rung in enumerate(sorted(rungs))}


def effect_colour(entry: Ablation) -> str:
    """Whether a change does harm, or good, by more than noise."""
    return FAINT if not entry.larger_than_noise else CLEAR if entry.mean < 0 else BETTER


def cost_colour(name: str, rungs: Sequence[int]) -> str:
    """Rungs as in the timeline, finals as their roles, the rest grey."""
    shades = {f"search, to epoch {rung}": colour for rung, colour in rung_colours(rungs).items()}
    finals = {"finals: winner": ROLE_COLOURS["winner"], "finals: controls": ROLE_COLOURS["default_kd"]}
    finals["ablation"] = ROLE_COLOURS["ablation"]
    return (shades | finals).get(name, "#BDBDBD")
