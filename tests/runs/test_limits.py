"""What Ray itself runs out of is one line with a remedy, as everything that the user can mend."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import ray
import torch
from mounts import Mount
from mounts import mount as mount
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from runs import ROOT

from wcl_ray.cli import run_job
from wcl_ray.errors import TrainingError, UserError
from wcl_ray.limits import gpu_full
from wcl_ray.train.failure import THEN_RESUME, explain, final_error
from wcl_ray.train.worker import Worker, train_worker

KILLED = (  # as Ray 2.60 says it
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: bbbefa22) was 30.1GB used / 31.54GB limit (0.954)\nOOM kill reason: Memory "
    "usage 1239154688B exceeded threshold\nObject store memory usage: [- objects spillable: 0\n]"
)
FILL = """
import sys
import numpy as np, ray
from wcl_ray.cli import run_job

ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20,
         logging_level="ERROR", log_to_driver=False, _temp_dir=sys.argv[2])

def block():
    return np.ones(8 * 2**20, np.uint8)

def body():
    make = {"driver": lambda: ray.put(block()), "task": ray.remote(block).remote}[sys.argv[1]]
    kept = []
    for _ in range(40):
        kept.append(make())
        ray.get(kept[-1])

run_job(body)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["driver", "task"])
def test_a_full_disk_that_ray_spills_to(mount: Mount, ray_tmp: str, where: str) -> None:
    place = mount("size=20m")
    ended = subprocess.run(
        [sys.executable, "-c", FILL, where, f"{ray_tmp}/spill"],
        env=os.environ | {"RAY_object_spilling_directory": str(place), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"the disk it spills to: {place}" in line
    assert re.search(r" k?M?B of 21 MB are free", line), line
    assert "free some space, let Ray spill to another disk (RAY_object_spilling_directory" in line


def line_of(error: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    """What a job prints of an error inside a task."""

    def body() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_job(body)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_gpu_without_memory() -> None:
    said = (  # as torch says it
        "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB "
        "of which 1.12 GiB is free. Of the allocated memory 21.70 GiB is allocated by PyTorch"
    )
    error = gpu_full(torch.OutOfMemoryError(said))
    assert error is not None
    assert re.search(r"\(of 23.64 GiB, for a tensor of 1.50 GiB\);.*micro-batch-size", str(error))
    assert gpu_full(torch.OutOfMemoryError("another")) is not None
    assert gpu_full(RuntimeError(said)) is None


def test_a_training_worker_on_a_gpu_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends at once, since every restart would end so."""

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Worker, "__init__", full)
    with pytest.raises(UserError, match=r"GPU ran out of memory; .*--train.micro-batch-size"):
        train_worker({"task": None})


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OutOfMemoryError(KILLED), r"node 192.0.2.2 ran out of memory \(30.1 of 31.54 GB in use\)"),
        (OutOfMemoryError("killed"), "a node ran out of memory, and Ray .*lower --scale.workers"),
        (ObjectStoreFullError("full"), "object store is full .*--object-store-memory"),
        (RuntimeEnvSetupError("pip\nfailed"), "set up the runtime environment of the job: .*pip f"),
    ],
)
def test_other_limits_of_ray(
    capsys: pytest.CaptureFixture[str], cause: RayError, said: str
) -> None:
    line = line_of(RayTaskError("f", "Traceback …", cause).as_instanceof_cause(), capsys)
    assert re.search(said, line), line


def test_a_training_worker_that_was_killed_for_memory(capsys: pytest.CaptureFixture[str]) -> None:
    killed = WorkerHealthCheckFailedError("a health check failed", OutOfMemoryError(KILLED))
    group = WorkerGroupError("…", {0: killed})

    def fit() -> None:
        try:
            raise group
        except WorkerGroupError as error:
            raise TrainingError(explain(error)) from None

    with pytest.raises(TrainingError) as caught:
        fit()
    assert "node 192.0.2.2 ran out of memory" in line_of(caught.value, capsys)


def test_no_room_for_what_a_training_worker_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends at once, and says that it can be resumed."""

    def full(*given: object) -> None:
        raise ray.exceptions.OutOfDiskError("Local disk is full")

    monkeypatch.setattr(Worker, "__init__", full)
    with pytest.raises(OSError, match="the disk it spills to") as caught:
        train_worker({"task": None})
    assert str(final_error(caught.value)).endswith(THEN_RESUME)
