"""Ray clusters: started on this machine, joined where they are, or attached to; always left as they were found."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from autokd.errors import ClusterError

ANSWER_SECONDS = 20.0  # how long a cluster may take to answer
LOOPBACK = "127.0.0.1"  # a Ray that we start serves this machine only
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # telemetry off
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow hold the results
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is never read
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_worker_niceness": "0",  # the lanes are the work; Ray would give them 15
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster we are connected to, and what it offers."""

    lanes: int
    gpus: int
    ours: bool = False  # started by us, on this machine

    def with_lanes(self, on_each_gpu: int) -> Cluster:
        """The same with that many lanes on each GPU; on CPUs it is what it was."""
        return replace(self, lanes=on_each_gpu * self.gpus) if self.gpus else self


@contextmanager
def connect(address: str | None, lanes: int | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or attach to the cluster at `address`. Left as it was found afterwards.

    Raises ClusterError if the address cannot be reached or the cluster has fewer CPUs than lanes.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    ours = not ray.is_initialized()
    if ours:
        _init(address, lanes)
    try:
        total = ray.cluster_resources()
        gpus = int(total.get("GPU", 0))
        offered = gpus or int(total.get("CPU", 1))
        if lanes is not None and lanes > int(total.get("CPU", 1)):
            raise ClusterError(
                f"each lane needs a CPU: {lanes} lanes asked for, the cluster has {int(total.get('CPU', 1))}; ask for fewer"
            )
        yield Cluster(lanes or offered, gpus, ours and address is None)
    finally:
        if ours:
            ray.shutdown()


def _init(address: str | None, lanes: int | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", num_cpus=lanes, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
        return
    _probe(address)
    ray.init(address=address, **quiet)


def _probe(address: str) -> None:
    """Raise ClusterError unless a cluster answers there. Asked in a process of its own: `ray.init` waits without end for a head
    that is gone.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"Ray Client cannot carry a search, got '{address}'; run on a node of the cluster with 'auto' or HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and int(port) < 2**16):
        raise ClusterError(f"a Ray address must be 'auto' or HOST:PORT, got '{address}'; for example 127.0.0.1:6379")
    code = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)"
    command = [sys.executable, "-W", "ignore", "-c", code, address]
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS / 4).close()
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        reason = (done.stderr.strip().splitlines() or ["it refused"])[-1] if done.returncode else None
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_SECONDS:.0f} s"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is not None:
        raise ClusterError(
            f"no Ray cluster answers at '{address}': {reason}; start one with `ray start --head`, or set RAY_AUTH_MODE=token if it asks for a token"
        )
