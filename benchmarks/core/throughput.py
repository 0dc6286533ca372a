"""What an epoch of training costs, in our core and outside of it: milliseconds per 1,000 images of the training set.

Ours, one lane of one thread on one core unless told otherwise: the bare student, distillation on tape, live, with JDA and CCD, with peers; what
recording takes. Theirs, on all cores with torch's default threads unless told otherwise: the usual loop, torchdistill, mdistiller's
settings. Validation is left out on both sides. What a machine of two cores trains is what counts against theirs: two lanes of ours against
their loop on both cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.core import mdistiller_style, pairs, torchdistill_loop, usual_loop
from benchmarks.core.figures import COST_HEADS, Bar, Part, cost_rows, ratio_bar
from benchmarks.core.images import Source, choose, load
from benchmarks.core.measure import Measured, Seat, Variant, apart, cores, measure
from benchmarks.core.options import Options
from benchmarks.core.ours import (
    calibrated,  # (Pair, Source) -> (Setting of one lane for this pair's KD recipe, what was chosen and why, in words)
    footprint,  # (Recipe, Pair, Source, Setting, Path of a new tape) -> (peak resident bytes of this process, tape bytes of an epoch)
    recording,  # (Recipe, Pair, Source, Setting, Path) -> Repetition: records one segment anew; returns the rows recorded
    teacher_forward,  # (Recipe, Pair, Source, Setting) -> Repetition: the same rows through the same teacher, nothing kept
    training,  # (Recipe, Pair, Source, Setting, Path of the tape | None for live) -> Repetition: an epoch, without validation
)
from benchmarks.core.pairs import FOUR, FOUR_WIDE, PAIRS, SIXTEEN, Pair
from benchmarks.core.usual_loop import Settings

LANE, SECOND_LANE = Seat("lane", 1), Seat("second lane", 1)  # ours
ONE, OTHER = Seat("one core", 1), Seat("other core", 1)  # theirs, one core each
ALL = Seat("all cores", cores())  # theirs

BARE, TAPE, LANES, LIVE, JDA = "bare student", "KD on tape", "KD on tape, two lanes", "KD live", "KD + JDA/CCD on tape"
RECORDING, FORWARD = "recording a segment", "bare teacher forward"
USUAL, USUAL_ONE, USUAL_TWO = "usual loop", "usual loop on one core", "usual loop, one on each of two cores"
TORCHDISTILL, MDISTILLER = "torchdistill", "mdistiller's settings"
MOST_PEERS = 3

Costs = dict[str, Measured]


def run(options: Options, progress: Progress) -> Part:
    """Measures everything in one run. Raises Absent if the images asked for are not here."""
    source = choose(options.images, options.rows, options.folder)
    images = apart(load, source)
    part = Part(f"Throughput on {source.name}, {len(images.y):,} images, batches of {pairs.BATCH}")
    shape = " x ".join(map(str, images.x.shape[1:]))
    for pair in PAIRS:
        ratio, mega = pairs.flops_ratio(pair, images), pairs.flops(pair.student, images) / 1e6
        part.notes.append(
            f"{pair.name}: resnet of width {pair.teacher} -> {pair.student}, depths 2 2 2, on {shape}: FLOPs {ratio:.1f}:1, student {mega:.0f} MFLOPs."
        )
    if source.name != "cifar100":
        part.notes.append(f"The bars are meant for CIFAR-100; these are {source.name}.")
    with tempfile.TemporaryDirectory() as scratch:
        settings = {pair: apart(calibrated, pair, source, threads=LANE.threads) for pair in PAIRS}
        part.notes += [f"{pair.name}, chosen by calibration: {words}" for pair, (_, words) in settings.items()]
        variants = list(_variants(options, source, {p: setting for p, (setting, _) in settings.items()}, Path(scratch)))
        costs = measure(variants, options.repetitions, progress)
        peak, disk = apart(
            footprint, pairs.kd(SIXTEEN), SIXTEEN, source, settings[SIXTEEN][0], Path(scratch) / "own", threads=1
        )
    part.notes.append(f"Peak memory of a lane (16:1, KD on tape): {peak / 2**20:.0f} MiB resident, torch included.")
    part.notes.append(f"Disk of the tape: {disk / 2**20:.2f} MiB for one epoch of {len(images.y):,} images.")
    part.tables = [(COST_HEADS, cost_rows(costs)), (("also", "ratio"), list(_also(costs)))]
    part.bars = list(_bars(costs))
    part.raw = {"costs": {name: asdict(each) for name, each in costs.items()}, "peak_bytes": peak, "tape_bytes": disk}
    return part


def label(pair: Pair, what: str) -> str:
    return f"{pair.name}: {what}"


def peers(count: int) -> str:
    return f"KD on tape, {count} peer{'s' if count > 1 else ''}"


# ---- what is measured


def _variants(options: Options, source: Source, settings: dict[Pair, Any], folder: Path) -> Iterator[Variant]:
    for pair in PAIRS:
        yield from _ours(pair, source, settings[pair], folder / f"{pair.teacher}-{pair.student}")
        yield from _theirs(pair, source, options)


def _ours(pair: Pair, source: Source, setting: Any, folder: Path) -> Iterator[Variant]:
    def lane(what: str, recipe: Any, tape: Path | None, seats: tuple[Seat, ...] = (LANE,)) -> Variant:
        return Variant(label(pair, what), partial(training, recipe, pair, source, setting, tape), seats)

    tape = folder / "tape"
    yield lane(BARE, pairs.bare(pair), None)
    yield lane(TAPE, pairs.kd(pair), tape)
    yield lane(LANES, pairs.kd(pair), tape, (LANE, SECOND_LANE))
    if pair is not SIXTEEN:
        return
    yield lane(LIVE, pairs.kd(pair), None)
    yield lane(JDA, pairs.jda_ccd(pair), tape)
    for count in range(1, MOST_PEERS + 1):
        yield lane(peers(count), pairs.with_peers(pair, count), tape)
    recipe = pairs.kd(pair)
    record = partial(recording, recipe, pair, source, setting, folder / "recorded")
    yield Variant(label(pair, RECORDING), record, (LANE,))
    yield Variant(label(pair, FORWARD), partial(teacher_forward, recipe, pair, source, setting), (LANE,))


def _theirs(pair: Pair, source: Source, options: Options) -> Iterator[Variant]:
    both, alone = Settings(workers=2), Settings(workers=0)
    boxed = partial(torchdistill_loop.prepare, pair, source, options.torchdistill, both)
    yield Variant(label(pair, USUAL), partial(usual_loop.prepare, pair, source, both), (ALL,))
    yield Variant(label(pair, TORCHDISTILL), boxed, (ALL,))
    if options.short and pair is not SIXTEEN:
        return
    one_core = partial(usual_loop.prepare, pair, source, alone)
    yield Variant(label(pair, USUAL_ONE), one_core, (ONE,))
    yield Variant(label(pair, USUAL_TWO), one_core, (ONE, OTHER))
    yield Variant(label(pair, MDISTILLER), partial(mdistiller_style.prepare, pair, source), (ALL,))


# ---- what it is measured against


def _bars(costs: Costs) -> Iterator[Bar]:
    def bar(claim: str, limit: float, above: str, below: str, *, at_most: bool = False, pair: Pair = SIXTEEN) -> Bar:
        return ratio_bar(claim, limit, costs[label(pair, above)], costs[label(pair, below)], at_most=at_most)

    yield bar("KD on tape / bare student, after recording", 1.05, TAPE, BARE, at_most=True)
    yield bar("usual loop on two cores / ours on two lanes, 16:1", 10, USUAL, LANES)
    for pair in (FOUR, FOUR_WIDE):
        widths = f"{pair.teacher} -> {pair.student}"
        yield bar(f"usual loop on two cores / ours on two lanes, 4:1, {widths}", 5, USUAL, LANES, pair=pair)
    for pair in PAIRS:
        yield bar(f"torchdistill on two cores / ours on two lanes, {pair.name}", 5, TORCHDISTILL, LANES, pair=pair)
    yield bar("KD + JDA/CCD on tape, twice the rows / bare student", 2.15, JDA, BARE, at_most=True)
    for count in range(1, MOST_PEERS + 1):
        limit = round((1 + count) * 1.05, 2)
        yield bar(f"{peers(count)} / without peers", limit, peers(count), TAPE, at_most=True)
    yield bar("recording a segment / bare teacher forward over the same rows", 1.1, RECORDING, FORWARD, at_most=True)
    yield bar("two lanes / one lane, images per second", 1.8, TAPE, LANES)


def _also(costs: Costs) -> Iterator[tuple[str, str]]:
    """Ratios without a bar: one core against one core, and the usual loop as it is best run on two."""
    wanted = [
        (SIXTEEN, LIVE, BARE),
        *((pair, USUAL_ONE, TAPE) for pair in PAIRS),
        *((pair, USUAL_TWO, LANES) for pair in PAIRS),
        *((pair, MDISTILLER, LANES) for pair in PAIRS),
    ]
    for pair, above, below in wanted:
        if label(pair, above) in costs:
            found = ratio_bar("", 0, costs[label(pair, above)], costs[label(pair, below)])
            yield f"{pair.name}: {above} / {below}", found.found
