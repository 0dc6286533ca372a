"""Few labels, and teachers trained with augmentation: whom does it help?"""

from __future__ import annotations

from autokd.recipe import Recipe
from benchmarks.methods.options import Options, paired, scores, spread
from benchmarks.methods.systems import KD, PLAIN, systems
from benchmarks.methods.trainings import Cell
from benchmarks.methods.worlds import AUGMENT, world
from benchmarks.search.judge import markdown

SHARES = (0.1, 0.25, 1.0)
TAUGHT = ("plain", "augmented")
JDA_ALONE = "JDA alone"
UNTAUGHT = (PLAIN, JDA_ALONE)  # arms that no teacher changes


def labels(options: Options) -> str:
    """Two tables: arms against shares of labels, at equal steps; and students of a teacher with and without augmentation."""
    arms = _arms()
    few: dict[tuple[str, object], list[Cell]] = {
        (arm, share): options.cells(arm, recipe, round(options.epochs / share), share)
        for arm, recipe in arms.items()
        for share in SHARES
    }
    taught: dict[tuple[str, object], list[Cell]] = {
        (arm, of): options.cells(arm, recipe, teacher=of)
        for arm, recipe in arms.items()
        if arm not in UNTAUGHT
        for of in TAUGHT
    }
    lines = options.trained([cell for cells in (*few.values(), *taught.values()) for cell in cells])
    found = {at: [lines[cell] for cell in cells] for at, cells in {**few, **taught}.items()}
    gains = [
        [
            arm,
            *(f"{spread(scores(found[arm, at]))} ({paired(found[arm, at], found[KD, at])})" for at in SHARES),
        ]
        for arm in arms
    ]
    first = markdown(["arm (against kd)", *(f"{share:.0%} of the labels" for share in SHARES)], gains)
    teachers = [world(options.images, options.data, 1.0, of) for of in TAUGHT]
    own = ["the teacher itself", *(f"{each.evaluate(each.data.test)['accuracy']:.2%}" for each in teachers), ""]
    heard = [
        [arm, *(spread(scores(found[arm, of])) for of in TAUGHT), paired(found[arm, "augmented"], found[arm, "plain"])]
        for arm in arms
        if arm not in UNTAUGHT
    ]
    second = markdown(["", *(f"{of} teacher" for of in TAUGHT), "difference"], [own, *heard])
    return f"{first}\n\n{second}"


def _arms() -> dict[str, Recipe]:
    known = systems()
    plain = known[PLAIN]
    kd = known[KD].model_copy(update={"ce_weight": 1.0})
    jda = kd.model_copy(update={"augment": AUGMENT})
    ccd = kd.model_copy(update={"augment": AUGMENT.model_copy(update={"ccd": True})})
    alone = plain.model_copy(update={"augment": AUGMENT})
    return {PLAIN: plain, JDA_ALONE: alone, KD: kd, "kd + JDA": jda, "kd + JDA + CCD": ccd}
