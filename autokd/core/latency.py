"""How long an untrained student takes to answer on this device, measured once per architecture and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autokd.core.device import Setting
from autokd.probe import Probe

WARM_UP = 3
CALLS = 30
SECONDS = 1.0  # no further calls are begun after these
QUANTILE = 0.25  # of the calls: other lanes at work slow some of them down


def probed_latency(
    architecture: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    probe: Probe,
    setting: Setting,
    folder: Path,
) -> float:
    """Milliseconds, from the folder if they were measured before with the same device, rows, threads and torch."""
    where = [architecture, setting.device, probe.rows, probe.threads, list(shape), torch.__version__]
    path = folder / f"{hashlib.sha256(json.dumps(where).encode()).hexdigest()[:16]}.json"
    try:
        return float(json.loads(path.read_text())["latency_ms"])
    except (OSError, ValueError, LookupError, TypeError):  # not measured yet, or torn
        measured = latency_ms(build(), shape, probe, setting)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"architecture": architecture, "probe": probe.to_dict(), "latency_ms": measured}))
    os.replace(part, path)
    return measured


def latency_ms(student: nn.Module, shape: tuple[int, ...], probe: Probe, setting: Setting) -> float:
    """As it is delivered: eval mode, float32, eager."""
    student = student.to(setting.device).eval()
    rows = torch.zeros((probe.rows, *shape), device=setting.device)
    before = torch.get_num_threads()
    torch.set_num_threads(probe.threads)
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP):
                _timed(student, rows)
            return 1000 * float(np.quantile(_calls(student, rows), QUANTILE))
    finally:
        torch.set_num_threads(before)


def _calls(student: nn.Module, rows: torch.Tensor) -> list[float]:
    begun, seconds = time.perf_counter(), list[float]()
    while len(seconds) < CALLS and (not seconds or time.perf_counter() - begun < SECONDS):
        seconds.append(_timed(student, rows))
    return seconds


def _timed(student: nn.Module, rows: torch.Tensor) -> float:
    begun = time.perf_counter()
    student(rows)
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    return time.perf_counter() - begun
