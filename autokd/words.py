"""Numbers and recipes as people read them: 71.2k, 1.3 MFLOPs, 98.3 % ± 0.2, 1 min 30 s, "resnet width=8, kd T=4".

Tables, pages and the live display all speak through this file, so that one figure looks the same everywhere.
"""

from __future__ import annotations

from autokd.recipe import PeerSpec, Recipe, TermSpec

MISSING = "-"


def count(number: float | None) -> str:
    """Three significant digits or so: 71234 -> "71.2k".

    >>> count(999), count(71234), count(999_960), count(1_300_000)
    ('999', '71.2k', '1.0M', '1.3M')
    """
    if number is None:
        return MISSING
    digits, prefix = _scaled(number)
    return digits + prefix


def flops(number: float | None) -> str:
    """FLOPs of one example's forward pass: 1_300_000 -> "1.3 MFLOPs"."""
    if number is None:
        return MISSING
    digits, prefix = _scaled(number)
    return f"{digits} {prefix}FLOPs"


def _scaled(number: float) -> tuple[str, str]:
    scaled = float(number)
    for prefix in ("", "k", "M", "G"):
        if abs(scaled) < 999.95 or (prefix == "" and abs(scaled) < 1000):
            break
        scaled /= 1000
    else:
        prefix = "T"
    whole = (prefix == "" and scaled == int(scaled)) or abs(scaled) >= 99.95
    return f"{scaled:.0f}" if whole else f"{scaled:.1f}", prefix


def duration(seconds: float | None) -> str:
    """Seconds in words: 0.012 -> "12 ms", 90 -> "1 min 30 s", 5400 -> "1 h 30 min"."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def score(mean: float | None, sd: float | None = None, metric: str = "accuracy") -> str:
    """A value of the metric, with its standard deviation over seeds: "98.3 % ± 0.2"."""
    if mean is None:
        return MISSING
    if metric == "accuracy":
        return f"{100 * mean:.1f} %" + (f" ± {100 * sd:.1f}" if sd is not None else "")
    return f"{mean:.4g}" + (f" ± {sd:.2g}" if sd is not None else "")


def difference(mean: float, sd: float | None = None, metric: str = "accuracy") -> str:
    """A difference of two values of the metric: "+1.20 ± 0.31 points" for accuracy."""
    if metric == "accuracy":
        return f"{100 * mean:+.2f}{f' ± {100 * sd:.2f}' if sd is not None else ''} points"
    return f"{mean:+.3g}{f' ± {sd:.2g}' if sd is not None else ''}"


def times(ratio: float | None) -> str:
    """How many times smaller: 34.1 -> "34x", 2.53 -> "2.5x"."""
    if ratio is None:
        return MISSING
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def budget(spec: dict[str, object]) -> str:
    """A budget as the ledger keeps it, {"kind", "amount"}, in words: "1 min 30 s", "200 trials"."""
    amount, kind = spec.get("amount"), str(spec.get("kind", ""))
    if not isinstance(amount, int | float):
        return MISSING
    return duration(float(amount)) if kind == "seconds" else f"{amount:g} {kind}"


SAID_OF_VIEWS = {"none": "rows as they are", "base": "base views", "rotations": "rotated views"}
SAID_OF_STAGE0 = {"smooth": "smoother"}


def recipe_words(recipe: Recipe) -> str:
    """A recipe in a dozen words: student, losses, views, peers."""
    student = " ".join([recipe.student.family, *(f"{name}={value(v)}" for name, v in recipe.student.fields.items())])
    losses = " + ".join(_term(term) for term in recipe.terms) or "no distillation"
    teacher = [f"teacher made {SAID_OF_STAGE0[recipe.stage0]}"] if recipe.stage0 in SAID_OF_STAGE0 else []
    views = SAID_OF_VIEWS.get(recipe.augment.policy, f"{recipe.augment.policy} rho={value(recipe.augment.rho)}")
    peers = [_peers(recipe.peers)] if recipe.peers.count else []
    return ", ".join([student, losses, *teacher, views, *peers])


def _peers(spec: PeerSpec) -> str:
    system = "" if spec.system == PeerSpec().system else f" ({spec.system})"
    return f"{spec.count} peer{'s' if spec.count > 1 else ''}{system}"


def _term(term: TermSpec) -> str:
    temperature = term.fields.get("temperature")
    return term.objective + (f" T={value(temperature)}" if temperature is not None else "")


def value(of: object) -> str:
    """A recipe's value: three digits of a number, words as they are."""
    return f"{of:.3g}" if isinstance(of, float) else str(of)
