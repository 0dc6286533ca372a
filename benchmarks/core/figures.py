"""Medians, spreads, ratios and bars, and how they are printed and written."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

from autokd.gain import t_quantile
from benchmarks.core.measure import Measured, cores

BUSY = 0.3  # load per core, averaged over the last minute, from which figures are not to be trusted


class Spread(NamedTuple):
    """Of repeated measurements: the middle one, the smallest and the largest."""

    median: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values), len(values))


def ratios(above: Measured, below: Measured) -> tuple[float, ...]:
    """above / below of each repetition: what slows one round down slows both. Empty if either is absent."""
    if not (above.costs and below.costs):
        return ()
    return tuple(a / b for a, b in zip(above.costs, below.costs, strict=True))


@dataclass(frozen=True)
class Bar:
    """A claim, what was found, and whether that is enough: None where it could not be measured."""

    claim: str
    asked: str
    found: str
    met: bool | None
    values: tuple[float, ...] = ()

    def row(self) -> tuple[str, str, str, str]:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[self.met]
        return self.claim, self.asked, self.found, verdict


def ratio_bar(claim: str, limit: float, above: Measured, below: Measured, *, at_most: bool = False) -> Bar:
    """On the median over the repetitions of above / below."""
    asked = f"{'at most' if at_most else 'at least'} {limit:g}x"
    found = ratios(above, below)
    if not found:
        return Bar(claim, asked, above.absent or below.absent or "nothing measured", None)
    return Bar(claim, asked, f"{spread(found).text()}x", holds(limit, median(found), at_most=at_most), found)


def holds(limit: float, value: float, *, at_most: bool) -> bool:
    return value <= limit if at_most else value >= limit


class Interval(NamedTuple):
    """Mean of paired differences, their standard deviation, and the 95 % interval of the mean (Student, 1908)."""

    mean: float
    sd: float
    low: float
    high: float


def interval(differences: Sequence[float]) -> Interval:
    """Of at least two differences."""
    middle, sd = mean(differences), stdev(differences)
    half = t_quantile(len(differences) - 1) * sd / math.sqrt(len(differences))
    return Interval(middle, sd, middle - half, middle + half)


def no_difference_bar(claim: str, differences: Sequence[float]) -> Bar:
    """Met if the 95 % interval of the mean difference contains 0. Differences are fractions, shown in points."""
    found = interval([100 * each for each in differences])
    text = f"{found.mean:+.2f} points, sd {found.sd:.2f}, 95 % interval {found.low:+.2f} to {found.high:+.2f}"
    return Bar(claim, "interval contains 0", text, found.low <= 0 <= found.high, tuple(differences))


@dataclass
class Part:
    """What one part of the benchmark found."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = field(default_factory=list)  # (heads, rows)
    bars: list[Bar] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)  # everything measured, fit for JSON

    def markdown(self) -> str:
        blocks = [f"## {self.title}", *self.notes, *(table(heads, rows) for heads, rows in self.tables)]
        if self.bars:
            heads = ("bar", "asked", "found: median (lowest to highest)", "verdict")
            blocks.append(table(heads, [each.row() for each in self.bars]))
        return "\n\n".join(blocks) + "\n"

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "notes": self.notes,
            "bars": [asdict(each) for each in self.bars],
            **self.raw,
        }


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in a cell are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def cost_rows(measured: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """Of each variant: images per second, milliseconds per 1,000 images with their spread, images of a repetition."""
    rows: list[tuple[str, ...]] = []
    for each in measured.values():
        if each.absent is not None:
            rows.append((each.name, "-", f"not measured: {each.absent}", "-"))
            continue
        found = spread([1000 * cost for cost in each.costs])
        rows.append((each.name, f"{1e6 / found.median:.0f}", found.text(0), str(each.images)))
    return rows


COST_HEADS = ("variant", "images/s", "ms per 1,000 images: median (lowest to highest)", "images a repetition")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    packages = ("torch", "torchvision", "numpy", "ray", "torchdistill")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def machine_lines(found: Mapping[str, Any]) -> str:
    """`machine` in words, with a warning where something else was computing."""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    line = f"{found['cores']} cores of {found['processor']}, {found['system']}, Python {found['python']}, {packages}, {found['date']}"
    if (found["load"] or 0) > BUSY * found["cores"]:
        line += f"\n\nThe machine was not idle (load {found['load']}): loops on all cores suffer from that more than lanes do, so take no figure from this run."
    return line


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "an unnamed processor"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
