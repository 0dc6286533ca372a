"""How much augmentation: test accuracy against the share of augmented rows, and against the probability that an operation fires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autokd.recipe import AugmentSpec, Recipe
from benchmarks.methods.options import Options, scores, spread
from benchmarks.methods.plots import curves
from benchmarks.methods.systems import KD, systems
from benchmarks.search.judge import markdown

RHO = (0.0, 0.2, 0.333, 0.5, 0.6, 0.667, 0.75)
P = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
FIXED_P, FIXED_RHO = 0.2, 0.5


def proportion(options: Options) -> str:
    """Two tables and a plot. KD with JDA, with and without cosine confidence; all at equal epochs."""
    kd = systems()[KD].model_copy(update={"ce_weight": 1.0})
    arms = {"JDA": False, "JDA + CCD": True}
    by_rho = {(arm, rho): options.cells(arm, _with(kd, FIXED_P, rho, ccd)) for arm, ccd in arms.items() for rho in RHO}
    by_p = {(arm, p): options.cells(arm, _with(kd, p, FIXED_RHO, ccd)) for arm, ccd in arms.items() for p in P}
    lines = options.trained([cell for cells in (*by_rho.values(), *by_p.values()) for cell in cells])
    found = [{at: scores([lines[cell] for cell in cells]) for at, cells in each.items()} for each in (by_rho, by_p)]
    titles = (f"share of augmented rows (p = {FIXED_P})", f"firing probability p (rho = {FIXED_RHO})")
    curves(dict(zip(titles, found, strict=True)), options.results / f"proportion-{options.images}.svg")
    tables = [_table(title, each, list(arms)) for title, each in zip(titles, found, strict=True)]
    return "\n\n".join(tables)


def _with(kd: Recipe, p: float, rho: float, ccd: bool) -> Recipe:
    augment = AugmentSpec(policy="jda", chain="cifar100", p=p, rho=rho, ccd=ccd) if rho else AugmentSpec()
    return kd.model_copy(update={"augment": augment})


def _table(title: str, found: Mapping[tuple[str, float], Sequence[float]], arms: Sequence[str]) -> str:
    values = sorted({value for _, value in found})
    rows = [[f"{value:g}", *(spread(found[arm, value]) for arm in arms)] for value in values]
    return markdown([title, *arms], rows)
