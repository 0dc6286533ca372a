"""A search on Fashion-MNIST: does the best student beat both controls at equal epochs?

    python -m benchmarks.fashion_mnist --data fashion_mnist.npz [--budget 20m] [--lanes 2]

The file holds x_train (20,000), y_train, x_test (10,000), y_test. The teacher is trained by `Teacher.fit` (cached); garments keep their
label when mirrored, so base views flip. The result is printed as the search prints it, and written to --out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import autokd

TEACHER = {"width": 16, "depth1": 1, "depth2": 1, "depth3": 1}  # 19 MFLOPs: a live teacher must not dwarf the students


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=15)
    parser.add_argument("--run-dir", default=None)
    parser.add_argument("--out", default=None)
    arguments = parser.parse_args()
    data = autokd.Data.load(arguments.data, flip=True, pad=1)
    begun = time.time()
    teacher = autokd.Teacher.fit(data, "resnet", spec=TEACHER, epochs=arguments.teacher_epochs, on_epoch=say)
    print(f"teacher ready after {time.time() - begun:.0f} s")
    result = autokd.search(
        teacher, arguments.budget, lanes=arguments.lanes, run_dir=arguments.run_dir, name="fashion-mnist"
    )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result.to_dict(), indent=1))


def say(epoch: int, epochs: int, value: float) -> None:
    print(f"teacher epoch {epoch}/{epochs}: validation {value:.2%}", flush=True)


if __name__ == "__main__":
    main()
