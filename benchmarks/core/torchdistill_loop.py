"""The same pair, data and loss trained by torchdistill (Matsubara, NLP-OSS 2023), with its own box, loss and logger.

The configuration is that of its CIFAR-100 example for knowledge distillation (crop, mirror, standardise; batches of 128; KDLoss; SGD), as
the dict that its YAML becomes; the loop is that of its image classification example. Three things differ, each in its favour: as many
workers as there are cores instead of 16, workers that persist, and a teacher set to eval mode (its box leaves the mode as it is).
It must be installed, or lie in a folder given with `--torchdistill`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.utils.data import RandomSampler

from benchmarks.core import pairs
from benchmarks.core.images import Source, load
from benchmarks.core.measure import Absent, Repetition
from benchmarks.core.pairs import Pair
from benchmarks.core.usual_loop import Settings, train_set

LOG_EVERY = 100  # steps, as in its configuration
DEVICE = torch.device("cpu")


def prepare(pair: Pair, source: Source, folder: str | None, settings: Settings) -> Repetition:
    """For the measurement: one epoch at each call. Raises Absent where torchdistill cannot be imported."""
    box_of = _imported(folder)
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    images = load(source)
    teacher = pairs.teacher(pair, images, normalises=False)
    student = pairs.network(pair.student, images, seed=0, normalises=False)
    datasets = {"train": train_set(images)}
    box = box_of(teacher, student, datasets, config(settings), DEVICE, None, False, 1)
    epochs = iter(range(sys.maxsize))

    def epoch() -> int:
        number, seen = next(epochs), 0
        box.pre_epoch_process(epoch=number)
        logger = MetricLogger(delimiter="  ")
        logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        logger.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for x, y, extra in logger.log_every(box.train_data_loader, LOG_EVERY, f"Epoch: [{number}]"):
            begun = time.time()
            x, y = x.to(DEVICE), y.to(DEVICE)
            loss = box.forward_process(x, y, extra)
            box.post_forward_process(loss=loss)
            logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            logger.meters["img/s"].update(len(x) / (time.time() - begun))
            if torch.isnan(loss) or torch.isinf(loss):
                raise FloatingPointError(f"the loss is {loss.item()}")
            seen += len(x)
        box.post_epoch_process()
        return seen

    return epoch


def config(settings: Settings) -> dict[str, Any]:
    """What its YAML file says, of the training."""
    whole: dict[str, Any] = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    logits = {"module_path": ".", "module_io": "output"}
    loss: dict[str, Any] = {f"{who}_{what}": value for who in ("student", "teacher") for what, value in logits.items()}
    loss |= {"temperature": settings.temperature, "alpha": settings.ce_weight, "beta": settings.kd_weight}
    sgd = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay, "nesterov": True}
    return {
        "log_freq": LOG_EVERY,
        "num_epochs": 200,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": None},
            "kwargs": {
                "batch_size": settings.batch,
                "num_workers": settings.workers,
                "persistent_workers": settings.workers > 0,
                "drop_last": True,
            },
        },
        "teacher": {**whole, "requires_grad": False},
        "student": {**whole, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": sgd},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {"key": "KDLoss", "kwargs": {**loss, "reduction": "batchmean"}},
                        "weight": 1.0,
                    }
                }
            },
        },
    }


def _imported(folder: str | None) -> Any:
    """torchdistill's maker of distillation boxes."""
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    try:
        from torchdistill.core.distillation import get_distillation_box
    except ImportError as error:
        raise Absent(
            f"torchdistill cannot be imported ({error}): pip install torchdistill, or give --torchdistill FOLDER"
        ) from None
    return get_distillation_box
