"""Every system: accuracy at equal epochs and at equal compute, cost relative to KD; and, trained for longer, those that start slowly."""

from __future__ import annotations

from autokd.engine.cost import relative_cost
from autokd.scope import CostOf
from benchmarks.methods.options import Options, paired, scores, spread
from benchmarks.methods.systems import KD, PLAIN, systems
from benchmarks.methods.worlds import world
from benchmarks.search.judge import markdown

LONGER = 3  # times the epochs
NOT_ABOVE_PLAIN = ("byot", "ckd_mkt", "crd", "dml", "kdcl", "ls", "past", "tfkd_reg", "vid")  # at the usual epochs


def comparison(options: Options) -> str:
    """One row a system. Equal compute: as many row-passes as KD's epochs take, the teacher's being taped where they can be."""
    recipes, teacher = systems(), world(options.images, options.data)
    student = CostOf(teacher.data)(recipes[KD].student)
    costs = {name: relative_cost(recipe, student, teacher.cost, taped=True) for name, recipe in recipes.items()}
    epochs = {name: max(1, round(options.epochs * costs[KD] / cost)) for name, cost in costs.items()}
    whole = {name: options.cells(name, recipe) for name, recipe in recipes.items()}
    short = {name: options.cells(name, recipe, epochs[name]) for name, recipe in recipes.items()}
    lines = options.trained([cell for cells in (*whole.values(), *short.values()) for cell in cells])
    found = {name: [lines[cell] for cell in cells] for name, cells in whole.items()}
    equal = {name: [lines[cell] for cell in cells] for name, cells in short.items()}
    rows = [
        [
            name,
            spread(scores(found[name])),
            paired(found[name], found[PLAIN]),
            f"{costs[name] / costs[KD]:.2f}",
            str(epochs[name]),
            spread(scores(equal[name])),
            paired(equal[name], equal[PLAIN]),
        ]
        for name in recipes
    ]
    head = ["system", f"{options.epochs} epochs", "against plain", "row-passes / KD's"]
    head += ["epochs at KD's compute", "there", "against plain there"]
    told = f"Teacher {teacher.evaluate(teacher.data.test)['accuracy']:.2%} on the test split, {teacher.cost.params:,} parameters; "
    told += f"student {student.params:,}; {len(teacher.data.train.y):,} rows, {options.seeds} seeds; test accuracy, differences paired by seed."
    return f"{told}\n\n{markdown(head, rows)}"


def longer(options: Options) -> str:
    """Systems that are not above the plain student, beside both controls, at three times the epochs."""
    epochs, recipes = LONGER * options.epochs, systems()
    cells = {name: options.cells(name, recipes[name], epochs) for name in (PLAIN, KD, *NOT_ABOVE_PLAIN)}
    lines = options.trained([cell for each in cells.values() for cell in each])
    found = {name: [lines[cell] for cell in each] for name, each in cells.items()}
    rows = [[name, spread(scores(each)), paired(each, found[PLAIN])] for name, each in found.items()]
    return markdown(["system", f"{epochs} epochs", "against plain"], rows)
