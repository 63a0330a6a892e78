"""Clusters as people start them: submitted jobs, several nodes, an autoscaler, lost nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from on_nodes import BLOCKS, IN_BLOCK
from pictures import write_parquet
from ray_cluster import ROOT, STORE, RayCluster, fetch
from runs import N, check_exactly_once, descendants

SMALL = [
    "--data.label", "species", "--data.image-size", "16", "--clusters.columns", "colour", "marks",
    "--clusters.top-k", "4", "--train.batch-size", "24", "--model.projector", "16", "8",
]  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    found = RayCluster()
    yield found
    found.stop()


def rows(run: Path) -> list[dict[str, Any]]:
    """Training rows of ``metrics.jsonl``; its last line may be half-written."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in found if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_submitted_jobs(cluster: RayCluster, tmp_path: Path) -> None:
    cluster.add_node(2)
    bare = {key: value for key, value in cluster.env.items() if key != "RAY_AUTH_TOKEN"}
    address = ["--scale.address", f"127.0.0.1:{cluster.port}"]
    refused = subprocess.run(
        [sys.executable, str(ROOT / "jobs/pretrain.py"), *address, "--storage", str(tmp_path)],
        env=bare, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "requires a token; set RAY_AUTH_MODE=token" in refused.stderr
    assert "Traceback" not in refused.stderr
    data = ["--data.path", write_parquet(tmp_path / "data", N), *SMALL]
    cluster.begin("wrong", "jobs/pretrain.py", "--data.path", "/no/where")

    again = [*data, "--train.epochs", "60", "--train.audit", "--name", "one", "--start-or-resume"]
    again += ["--scale.cpus-per-worker", "1"]
    cluster.begin("first", "jobs/pretrain.py", *again)
    run = cluster.home / "runs/one"  # a relative path of a job is taken from the home folder
    cluster.until(lambda: len(rows(run)) > 8, 120)
    cluster.until(lambda: list(run.glob("rounds/000/train/checkpoint_*/state.pt")), 60)
    assert shown(cluster, "wcl_ray_images_per_second") > 0
    assert shown(cluster, "wcl_ray_loss") > 0
    assert json.loads((run / ".alive").read_text())["job"] == "first"
    assert cluster.ray("job", "stop", "first").returncode == 0
    assert cluster.status("first") == "STOPPED"
    logs = cluster.logs("first")
    assert "error: stopped; the same command continues from the last checkpoint" in logs
    assert re.search(r"ray +2 node\(s\), 2 CPUs, 0 GPUs; dashboard http", logs)
    assert not (run / "results.json").exists()
    assert not (run / ".alive").exists()
    assert cluster.status("wrong") == "FAILED"
    assert re.search("error: .*/no/where", cluster.logs("wrong"))

    second = cluster.submit("jobs/pretrain.py", *again)
    assert second.returncode == 0, second.stdout
    assert re.search(r"resuming from epoch [1-9]", second.stdout)
    assert re.search(r"store +peak .* of .*, spilled 0 B", second.stdout)
    assert re.search(r"time +clusters .* s, stream .* s, train .* s, evaluate", second.stdout)
    assert re.search(r"data +images kept: 1[45]\d rows, \d+ task", second.stdout)
    usage = json.loads((run / "results.json").read_text())["usage"]
    assert usage["object_store_peak"] > N * 16 * 16 * 3
    assert usage["restarts"] >= 1
    check_exactly_once(run, round(N * 0.8), 24, 60)

    short = ["--train.epochs", "2", "--trials", "1", "--trial-epochs", "1", "--name", "search"]
    cluster.begin("search", "jobs/tune.py", *data, *short, "--confirm", "0")
    embedded = cluster.submit("jobs/embed.py", "--run", "runs/one", "--out", "features")
    assert embedded.returncode == 0, embedded.stdout
    assert re.search(r"\ntime +\w+ ", embedded.stdout)
    assert list((cluster.home / "features").glob("*.parquet"))
    means = ["--clusters.kind", "kmeans", "--clusters.k", "4", "--out", "clusters.parquet"]
    clustered = cluster.submit("jobs/cluster.py", "--data.path", "features", *means)
    assert clustered.returncode == 0, clustered.stdout
    assert re.search(r"\ntime +\w+ ", clustered.stdout)
    assert (cluster.home / "clusters.parquet").exists()
    cluster.until(lambda: cluster.status("search") in ("SUCCEEDED", "FAILED"), 300)
    searched = cluster.logs("search")
    assert cluster.status("search") == "SUCCEEDED", searched
    assert re.search(r"\ntime +\w+ ", searched)
    assert (cluster.home / "runs/search/best.yaml").exists()


def shown(cluster: RayCluster, name: str) -> float:
    """Value of a gauge at Ray's metrics endpoints."""

    def find() -> float | None:
        for port in cluster.metrics_ports():
            for line in fetch(f"http://127.0.0.1:{port}/metrics").splitlines():
                if line.startswith(f"ray_{name}{{"):
                    return float(line.rsplit(" ", 1)[1])
        return None

    return float(cluster.until(find, 60))


@pytest.mark.slow
def test_rows_stay_on_their_nodes(cluster: RayCluster, tmp_path: Path) -> None:
    for more in ((), ("--num-gpus=1",)):
        cluster.add_node(2, *more)
    data = write_parquet(tmp_path / "data", N)
    raw, decoding, shards, shared, encoded = cluster.driver(  # the store is free again in between
        ("dealt", "raw"), ("decoding", data), ("shards",), ("shared", str(tmp_path / "runs")),
        ("dealt", "encoded"),
    )  # fmt: skip
    for dealt in (raw, encoded):
        check_dealt(dealt)
    assert decoding == {
        "gpu": 0, "streamed": N, "decoded_on_gpu_nodes": 0, "cpus": [2.0, 0.0]
    }  # fmt: skip
    assert shards["nodes"] == 2
    assert shards["local"] == 1.0
    assert len(set(shards["bits"])) == 1
    assert shared["left"] == []
    assert "is not seen by 2 of 3 nodes" in shared["error"]
    assert "s3://" in shared["error"]
    cluster.add_node(2)  # no node has half of the cluster's CPUs
    assert cluster.driver(("evaluated", data)) == [{"cpu": [N, 0], "gpu": [N, 1]}]


def check_dealt(found: dict[str, Any]) -> None:
    """Blocks of two nodes, more than one node's store: what a worker has read is let go."""
    assert found["homes"] == [0] * BLOCKS[0] + [1] * BLOCKS[1]
    rows = sum(BLOCKS) * IN_BLOCK
    assert rows * 3 * 256**2 > STORE
    assert found["before"] == found["spilled"] == 0
    first, second = found["workers"]
    for one, other in zip(first["seen"], second["seen"], strict=True):
        assert len(one) == len(other) == rows // 2 // 8 * 8
        assert len(set(one) | set(other)) == len(one) + len(other)
    for worker in (first, second):
        assert worker["max_blocks"] == 2
        assert worker["held"] <= 2
        assert worker["left"] == 0
        assert worker["met"] >= 1  # a partner, inside of the window
    assert first["local"] == 1
    assert first["known"] == BLOCKS[0]  # no references to the other node's
    assert second["local"] == pytest.approx(BLOCKS[1] / (sum(BLOCKS) / 2), abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_autoscaling_and_a_lost_node(tmp_path: Path) -> None:
    kinds = {"reader": {"CPU": 1, "max": 1}, "trainer": {"CPU": 2, "max": 2}}
    cluster = RayCluster(kinds=kinds)
    try:
        data = write_parquet(tmp_path / "data", N)
        epochs = 150
        assert cluster.nodes() == {"reader": 0, "trainer": 0}
        cluster.begin(
            "run", "jobs/pretrain.py", "--data.path", data, *SMALL, "--train.audit",
            "--train.epochs", str(epochs), "--scale.workers", "1:2", "--scale.cpus-per-worker",
            "2", "--scale.resize-seconds", "3", "--name", "one", "--train.checkpoint-steps", "20",
        )  # fmt: skip
        run = cluster.home / "runs/one"

        def trained(workers: int, beyond: int = 0) -> bool:
            found = rows(run)
            return any(r["workers"] == workers and r["step"] > beyond for r in found)

        cluster.until(lambda: cluster.nodes()["reader"], 240)  # the smallest that can read
        cluster.until(lambda: trained(1) or trained(2), 300)
        cluster.until(lambda: trained(2), 300)
        assert cluster.nodes()["trainer"] == 2
        lost = rows(run)[-1]["step"]
        workers = cluster.until(
            lambda: [pid for pid in cluster.pids() if "RayTrainWorker" in title(pid)], 60
        )
        raylet = parent(workers[0])
        for pid in [*descendants(raylet), raylet]:
            os.kill(pid, signal.SIGKILL)
        cluster.until(lambda: trained(1, lost) or trained(2, lost), 300)
        cluster.until(lambda: cluster.status("run") in ("SUCCEEDED", "FAILED"), 900)
        assert cluster.status("run") == "SUCCEEDED", cluster.logs("run")
        check_exactly_once(run, round(N * 0.8), 24, epochs)
        cluster.until(lambda: not any(cluster.nodes().values()), 240)  # idle nodes go
    finally:
        cluster.stop()


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
