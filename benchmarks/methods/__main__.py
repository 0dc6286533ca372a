"""Every published system on the same images with the same student, and what augmentation does.

    python -m benchmarks.methods [--images fashion_mnist] [--data FOLDER] [--epochs 20] [--seeds 3] [--lanes 2]
                                 [--only systems,longer,times,proportion,labels,joint] [--budget 30m] [--results FOLDER]

Fashion-MNIST and CIFAR-100 lie in ../shared/data or where --data says; digits need no file. A run that is stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.core.images import BESIDE
from benchmarks.methods.comparison import comparison, longer
from benchmarks.methods.joint import joint
from benchmarks.methods.labels import labels
from benchmarks.methods.options import Options
from benchmarks.methods.proportion import proportion
from benchmarks.methods.times import times
from benchmarks.methods.worlds import SIZES

PARTS = {
    "systems": comparison,
    "longer": longer,
    "times": times,
    "proportion": proportion,
    "labels": labels,
    "joint": joint,
}


def main() -> None:
    options, wanted = _arguments()
    for name, part in PARTS.items():
        if name in wanted:
            text = part(options)
            print(f"\n## {name}\n\n{text}", flush=True)
            options.results.mkdir(parents=True, exist_ok=True)
            (options.results / f"{name}-{options.images}.md").write_text(text + "\n")


def _arguments() -> tuple[Options, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", choices=sorted(SIZES), default="fashion_mnist")
    parser.add_argument("--data", type=Path, default=BESIDE)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--budget", default="30m", help="of the joint search")
    parser.add_argument("--results", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    wanted = given.only.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"--only must be of {', '.join(PARTS)}, got {unknown[0]}")
    return Options(
        given.images, given.data, given.epochs, given.seeds, given.lanes, given.results, given.budget
    ), wanted


if __name__ == "__main__":
    main()
