"""Ctrl-C and SIGTERM: a job ends within seconds, and what it says about resuming is true."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import write_parquet
from runs import N, descendants, job

from wcl_ray.stopping import PATIENCE

SLACK = 2.5  # seconds that a busy machine may take on top


def blocked(body: str) -> subprocess.Popen[str]:
    """A job that has printed its first line and does the rest of its body."""
    code = (
        "import ctypes, sys, threading, time\n"
        "from wcl_ray.cli import run_job\n"
        "from wcl_ray.stopping import set_resume_hint\n"
        "def body():\n    set_resume_hint('it is kept')\n"
        f"    print('started', flush=True)\n{body}\n"
        "run_job(body)\n"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)
    return process


def stop(process: subprocess.Popen[str], number: int) -> tuple[str, float]:
    """Send a signal; what the process says, and after how many seconds it has ended."""
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return errors, time.monotonic() - sent


INT, TERM = (signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "stopped", 143)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "number", "word", "status"),
    [
        ("    time.sleep(60)", *INT),
        ("    time.sleep(60)", *TERM),
        # as Ray's start waits in C
        ("    ctypes.CDLL(None).sleep(4); ctypes.CDLL(None).sleep(60)", *INT),
        ("    while True:\n        try: time.sleep(60)\n        except BaseException: pass", *TERM),
        ("    threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)", *INT),
        ("    try: time.sleep(60)\n    except BaseException: raise ValueError('odd')", *TERM),
    ],
    ids=["python int", "python term", "call in C", "swallowed", "thread", "other error"],
)
def test_a_signal_ends_a_job_whatever_it_does(
    body: str, number: int, word: str, status: int
) -> None:
    process = blocked(body)
    errors, seconds = stop(process, number)
    assert seconds < PATIENCE + SLACK
    assert process.returncode == status
    assert errors == f"error: {word}; it is kept\n"  # one line


def test_a_second_signal_ends_a_job_at_once() -> None:
    process = blocked(
        "    while True:\n        try: time.sleep(60)\n        except BaseException: pass"
    )
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    errors, seconds = stop(process, signal.SIGINT)
    assert seconds < 0.6 * PATIENCE
    assert process.returncode == 130
    assert errors == "error: interrupted; it is kept\n"


def started(
    tmp_path: Path, script: str, words: list[str], seen: Callable[[str], object]
) -> subprocess.Popen[str]:
    """A job with an own Ray, as soon as its output or files show something."""
    output = tmp_path / "output"
    with output.open("w") as stream:
        process = subprocess.Popen(
            job(tmp_path, *words, script=script), stdout=stream, stderr=subprocess.PIPE, text=True
        )
    limit = time.monotonic() + 240
    while not seen(output.read_text()):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < limit
        time.sleep(0.05)
    return process


def check_gone(pids: list[int]) -> None:
    """Nothing that the job has started is left a little later."""
    limit = time.monotonic() + 10

    def there(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    while left := [pid for pid in pids if there(pid)]:
        assert time.monotonic() < limit, left
        time.sleep(0.1)


def check_stop(process: subprocess.Popen[str], number: int, message: str) -> None:
    """A signal ends a job soon, with one line and its status, and nothing is left."""
    pids = descendants(process.pid)
    errors, seconds = stop(process, number)
    assert errors == f"error: {message}\n"
    assert process.returncode == 128 + number
    assert seconds < PATIENCE + SLACK
    check_gone(pids)


def options(tmp_path: Path, name: str) -> list[str]:
    return [
        "--data.path", write_parquet(tmp_path / "data", N), "--data.image-size", "16",
        "--clusters.columns", "colour", "marks", "--clusters.top-k", "4", "--train.batch-size",
        "8", "--train.epochs", "500", "--storage", str(tmp_path / "runs"), "--name", name,
    ]  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_before_the_run_exists(tmp_path: Path) -> None:
    """With a plugin that imports Ray while the command line is read."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import ray\n")
    words = [*options(tmp_path, "early"), "--plugins", str(plugin)]
    process = started(tmp_path, "pretrain.py", words, lambda text: "ray " in text)
    check_stop(process, signal.SIGINT, "interrupted; the same command starts over")
    assert not (tmp_path / "runs/early/config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "more", "said"),
    [
        (signal.SIGINT, [], "interrupted; the same command with --resume continues"),
        (signal.SIGTERM, ["--start-or-resume"], "stopped; the same command continues"),
    ],
)
def test_training_stops_at_once_and_leaves_a_good_checkpoint(
    tmp_path: Path, number: int, more: list[str], said: str
) -> None:
    run = tmp_path / "runs/one"
    kept = run / "rounds/000/train/checkpoint_manager_snapshot.json"
    words = [*options(tmp_path, "one"), *more]
    process = started(
        tmp_path,
        "pretrain.py",
        words,
        lambda _: kept.exists() and "state" in str(list(run.rglob("state.pt"))),
    )
    before = len((run / "metrics.jsonl").read_text().splitlines())
    check_stop(process, number, f"{said} from the last checkpoint")
    after = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(after) - before < 60  # rows of less than a second or two
    rows = json.loads(kept.read_text())["checkpoint_results"]
    state = torch.load(
        kept.parent / rows[-1]["checkpoint_dir_name"] / "state.pt", weights_only=True
    )
    assert state["position"]["epoch"] >= 1


@pytest.mark.slow
def test_clusters_of_metadata_have_no_checkpoint(tmp_path: Path) -> None:
    words = options(tmp_path, "x")[:9]
    process = started(tmp_path, "cluster.py", words, lambda text: "images " in text)
    check_stop(process, signal.SIGTERM, "stopped; the same command starts over")


@pytest.mark.slow
def test_kmeans_of_vectors_stopped_says_what_goes_on(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(100_000, 16)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
    (tmp_path / "vectors").mkdir()
    pq.write_table(pa.table({"feature": column}), tmp_path / "vectors/part.parquet")
    words = [
        "--clusters.kind",
        "kmeans",
        "--clusters.k",
        "3000",
        "--data.path",
        str(tmp_path / "vectors"),
    ]
    state = tmp_path / "state/kmeans.npz"
    words += ["--checkpoint", str(state.parent)]
    process = started(tmp_path, "cluster.py", words, lambda _: state.exists())
    message = "stopped; the same command continues from the last iteration"
    check_stop(process, signal.SIGTERM, message)
