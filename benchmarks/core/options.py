"""What is measured and how much of it: the whole benchmark, or `--short` for a look in less than ten minutes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Defaults are those of the whole benchmark."""

    short: bool = False
    images: str = "auto"  # of the throughput and the search: "cifar100", "digits", or the first of them that is here
    folder: str | None = None  # where the images lie
    torchdistill: str | None = None  # a folder to import it from
    repetitions: int = 5
    rows: int = 1_920  # of one repetition: 15 batches
    search_rows: int = 1_920
    search_epochs: int = 2
    searches: int = 1  # of each side, in turns
    teacher_epochs: int = 3  # of the teacher that the search is given; fitted once, then cached
    seeds: int = 5  # of each precision
    precision_rows: int = 3_000
    precision_epochs: int = 8


SHORT = Options(
    short=True,
    rows=384,
    search_rows=512,
    teacher_epochs=2,
    precision_rows=1_000,
    precision_epochs=4,
)
