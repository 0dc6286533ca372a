"""The benchmark of the training core, in one run on one machine.

    python -m benchmarks.core [--short] [--json FILE] [--only throughput,search,precision]

Ratios are formed within one round of one run; absolute figures of different runs or machines cannot be compared. The whole takes about an
hour on two cores, `--short` less than ten minutes: its epochs are so short that fixed costs weigh more than they do in use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.core import precision, search, throughput
from benchmarks.core.figures import Part, machine, machine_lines
from benchmarks.core.measure import Absent
from benchmarks.core.options import SHORT, Options
from benchmarks.progress import bars

PARTS: dict[str, Callable[[Options, Progress], Part]] = {
    "throughput": throughput.run,
    "search": search.run,
    "precision": precision.run,
}


def main() -> None:
    arguments = _arguments()
    options, before = _options(arguments), machine()
    begun = time.perf_counter()
    print(f"# Training core\n\n{machine_lines(before)}\n", flush=True)
    parts: dict[str, Any] = {}
    for name in arguments.only:
        with bars() as progress:
            try:
                part = PARTS[name](options, progress)
            except Absent as why:
                part = Part(name, notes=[f"Not measured: {why}"])
        print(part.markdown(), flush=True)
        parts[name] = part.to_dict()
        if arguments.json:  # after each part, so that a run that is stopped keeps what it has
            whole = {"machine": before, "options": asdict(options), "parts": parts}
            Path(arguments.json).write_text(json.dumps(whole, indent=1))
    print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="less than ten minutes")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--only", type=_names, default=list(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}")
    parser.add_argument("--images", default=None, help="cifar100 or digits; default: cifar100 where it is")
    parser.add_argument("--data", dest="folder", metavar="FOLDER", help="where the images lie; default: ../shared/data")
    parser.add_argument("--torchdistill", metavar="FOLDER", help="where torchdistill lies, if it is not installed")
    parser.add_argument("--rows", type=int, help="training images of one repetition, and of an epoch of the search")
    parser.add_argument("--epochs", dest="search_epochs", type=int, help="of a trial of the search")
    parser.add_argument("--repetitions", type=int, help="of each variant of the throughput")
    parser.add_argument("--searches", type=int, help="of each side")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    wrong = [name for name in names if name not in PARTS]
    if wrong:
        raise argparse.ArgumentTypeError(f"'{wrong[0]}' is none of {', '.join(PARTS)}")
    return names


def _options(arguments: argparse.Namespace) -> Options:
    """The defaults, with what was given in their place."""
    given = {
        name: value
        for name in ("images", "folder", "torchdistill", "rows", "search_epochs", "repetitions", "searches")
        if (value := getattr(arguments, name)) is not None
    }
    if "rows" in given:
        given["search_rows"] = given["rows"]
    return replace(SHORT if arguments.short else Options(), **given)


if __name__ == "__main__":
    main()
