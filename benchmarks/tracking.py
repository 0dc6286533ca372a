"""What writing to MLflow costs a search: the same search with tracking and without, in turn, on the Ray executor.

    python -m benchmarks.tracking [--trials 60] [--repeats 3]

All trials of the space cost the same (only weights, temperature and learning rate vary), so both searches do the same work: the
same number of trials, promotions and finals. Printed: wall seconds from the first session event to the last result, for each run, and
the ratio of the medians. The store is a new sqlite database for every run: the dearest case.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import autokd
from autokd.api import vocabulary
from autokd.space import Space

EQUAL_COST = """
version: 1
about: students of one architecture, so that every trial costs the same
task: classification
epochs: {max: 9}
fields:
  student.family: resnet
  student.resnet.width: 12
  student.resnet.depth1: 1
  student.resnet.depth2: 1
  student.resnet.depth3: 1
  ce_weight: {float: [0.05, 2], log: true}
  terms.kd.weight: {float: [0.1, 10], log: true}
  terms.kd.temperature: {float: [1, 20], log: true}
  augment.policy: base
  optim.lr: {float: [0.03, 0.3], log: true}
  optim.batch: 64
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    teacher = autokd.Teacher.fit("digits")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(arguments.repeats):
        for tracking in (False, True) if repeat % 2 == 0 else (True, False):
            seconds[tracking].append(run(teacher, arguments.trials, tracking))
            print(f"tracking {'on ' if tracking else 'off'}  {seconds[tracking][-1]:7.2f} s", flush=True)
    off, on = median(seconds[False]), median(seconds[True])
    print(f"medians: off {off:.2f} s, on {on:.2f} s, ratio {on / off:.3f}")


def run(teacher: autokd.Teacher, trials: int, tracking: bool) -> float:
    """Wall seconds of one search, Ray's start left out."""
    space = Space.parse(EQUAL_COST, vocabulary(), origin="equal_cost")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'mlflow.db'}"
        run_dir = Path(folder) / "run"
        result = autokd.search(
            teacher,
            f"{trials} trials",
            space=space,
            epochs=9,
            run_dir=run_dir,
            tracking=tracking,
            tracking_uri=uri if tracking else None,
            verbose=False,
        )
        ended = time.time()
        reports = [event["time"] for event in result.events if event["event"] in ("rung", "session")]
        finished = next(event["time"] for event in result.events if event["event"] == "finish")
        print(
            f"  {len(result.history.trials)} trials, {result.history.epochs} epochs, {ended - finished:.1f} s after the finish",
            flush=True,
        )
        return max(reports) - min(reports)


if __name__ == "__main__":
    main()
