"""A first search: handwritten digits, 90 seconds. Run it with  python examples/digits_quickstart.py"""

from __future__ import annotations

from typing import Any

import autokd


def main(budget: str = "90s", **options: Any) -> autokd.SearchResult:
    teacher = autokd.Teacher.fit("digits")
    result = autokd.search(teacher, budget=budget, **options)

    best = result.best
    if best is None:
        raise SystemExit(result.headline())
    print(f"\nstudent: {best.recipe.student.family} {best.recipe.student.fields}, {best.size_ratio:.0f}x smaller")
    print("losses:", ", ".join(f"{term.weight:g} {term.objective}" for term in best.recipe.terms) or "none")
    for gain in result.gains():
        print(gain.sentence())
    print(result.leaderboard()[["trial", "source", "epoch", "value", "params"]].head())
    return result


if __name__ == "__main__":
    main()
