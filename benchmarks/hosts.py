"""Training on several hosts, one of which is cut off; all of them on one machine, as root.

    python benchmarks/hosts.py                 # elastic: training continues with one host less
    python benchmarks/hosts.py --workers 2     # fixed: training waits for a fresh host

Every host is a raylet with a network namespace on a bridge, processes, and a private tmpfs for Ray,
home and temporary files; it can write to no other folder. All that hosts share is an S3 server
(moto) on the bridge, with the images and the run. The head has no CPUs, so the two workers sit on
the other hosts. In the middle of training the link of one goes down, without a word to anybody. At
the end the audit tells whether every image was trained exactly once per epoch.

Everything lives inside namespaces of one process and ends with it, however it ends. Where
namespaces are not allowed it says so and ends with status 0. Further options go to pretrain.py.
"""

from __future__ import annotations

import argparse
import io
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from namespaces import NET, SCRATCH, Host, bridge, inside, ip, wait_for
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ENDPOINT, BUCKET = f"http://{NET}.1:9000", "hosts"
IMAGES = 192  # eight batches
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(16),
    "RAY_health_check_initial_delay_ms": "1000",  # a lost host is noticed after some five seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # takes one checkpoint each: they come fast here
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TMPDIR": SCRATCH,
    "TMPDIR": SCRATCH,
    "HOME": SCRATCH,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


class Store:
    """The S3 server on the bridge; it keeps every version of every file."""

    def __init__(self, log: Path) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", f"{NET}.1", "-p", "9000"]
        with log.open("wb") as out:
            subprocess.Popen(words, stdout=out, stderr=out)
        self.client = boto3.client("s3", endpoint_url=ENDPOINT)
        wait_for("the S3 server", self._ready)
        on = {"Status": "Enabled"}
        self.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=on)
        rng = np.random.default_rng(0)
        for part in np.arange(IMAGES).reshape(4, -1):
            files = [io.BytesIO() for _ in part]
            for sink in files:
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(sink, "PNG")
            colours = [("red", "green", "blue")[n // 2 % 3] for n in part]
            images = pa.array([sink.getvalue() for sink in files], pa.binary())
            whole = io.BytesIO()
            pq.write_table(pa.table({"id": part, "image": images, "colour": colours}), whole)
            self.write(f"data/{part[0]}.parquet", whole.getvalue())

    def _ready(self) -> bool:
        try:
            self.client.create_bucket(Bucket=BUCKET)
        except Exception:
            return False
        return True

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def versions(self, prefix: str) -> list[dict[str, Any]]:
        """Every version of the files of the run that begin so."""
        paginator = self.client.get_paginator("list_object_versions")
        pages = paginator.paginate(Bucket=BUCKET, Prefix=f"runs/cut/{prefix}")
        return [row for page in pages for row in page.get("Versions", [])]

    def trained(self) -> dict[int, np.ndarray]:
        """Epoch → ids of its images. A step that was trained again counts with its last version."""
        steps: dict[str, dict[str, list[Any]]] = {}
        for row in self.versions("audit/"):
            if row["IsLatest"]:
                step, rest = row["Key"].split("-", 1)  # …/EPOCH/STEP-RANK-of-WORLD.bin
                steps.setdefault(step, {}).setdefault(rest.split("-of-")[1], []).append(row)
        by_epoch: dict[int, list[np.ndarray]] = {}
        for step, worlds in steps.items():
            rows = max(worlds.values(), key=lambda rows: max(row["LastModified"] for row in rows))
            for row in rows:
                ids = np.frombuffer(self.read(row["Key"]), "<i8").reshape(-1, 2)[:, 0]
                by_epoch.setdefault(int(step.split("/")[-2]), []).append(ids)
        return {epoch: np.concatenate(parts) for epoch, parts in by_epoch.items()}


def story(given: argparse.Namespace, job_words: list[str], logs: Path) -> bool:
    """The whole run; returns whether all checks hold."""
    began, good = time.monotonic(), True

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    def check(fact: str, holds: bool) -> None:
        nonlocal good
        good &= holds
        print(f"{'ok' if holds else 'FAILED':>8}  {fact}", flush=True)

    bridge()
    store = Store(logs / "s3.log")
    hosts = [Host(number, logs) for number in (1, 2, 3)]
    left, lost = hosts[4 - given.cut], hosts[given.cut - 1]
    say(", ".join(f"{host.name} {host.address}" for host in hosts))
    words = (
        f"{sys.executable} {ROOT}/jobs/pretrain.py --storage s3://{BUCKET}/runs --name cut "
        f"--data.path s3://{BUCKET}/data --data.endpoint {ENDPOINT} --data.image-size 16 "
        "--clusters.top-k 2 --model.projector 16 8 --train.batch-size 24 --train.audit "
        f"--train.epochs {given.epochs} --train.checkpoint-steps 5 --scale.cpus-per-worker 1 "
        f"--scale.workers {given.workers} --scale.address {NET}.2:6379"
    )
    job = hosts[0].run([*words.split(), *job_words], logs / "job.log")

    def until(event: str, condition: Callable[[], Any]) -> float:
        def look() -> Any:
            if job.poll() is not None:
                raise SystemExit(f"FAILED  the job ended with {job.returncode} before {event}")
            return condition()

        return wait_for(event, look)

    until("the first step", lambda: store.versions("audit/"))
    say("the first step")
    until("the middle", lambda: store.versions(f"audit/{given.epochs // 3:04d}/"))
    places = [len(host.trainers()) for host in hosts]
    check(f"training workers on the hosts: {places}", places == [0, 1, 1])
    before = left.trainers()
    ip(f"link set {lost.name} down")
    cut = time.monotonic()
    say(f"the link of {lost.name} is cut")
    noticed = until("it was noticed", lambda: left.trainers() != before) - cut
    say(f"noticed: the worker of {left.name} was stopped")
    count = len(store.versions("audit/"))
    if not given.elastic:
        lost.power_off()
        ip(f"link set {lost.name} up")
        lost.start()
        say(f"a fresh {lost.name} has joined")
    again = until("training continued", lambda: len(store.versions("audit/")) > count) - cut
    say("the next step")
    if given.elastic:
        ip(f"link set {lost.name} up")
        until("the lost host left", lambda: lost.process.poll() is not None)
        say(f"the link is back; {lost.name} has learned that it counts as dead, and left")
    wait_for("the end", lambda: job.poll() is not None)
    say("the job has ended\n")

    check(f"the job ended with {job.returncode}", job.returncode == 0)
    starts = (logs / "job.log").read_text().count("resuming from epoch")
    check(f"training was started again {starts} time(s)", starts >= 1)
    ids = {e: np.sort(rows) for e, rows in store.trained().items()}
    whole = sum(np.array_equal(rows, np.arange(IMAGES)) for rows in ids.values())
    check(f"every image exactly once in {whole} of {given.epochs} epochs", whole == given.epochs)
    check("results.json on S3", bool(store.versions("results.json")))
    total = sum(row["Size"] for row in store.versions("audit/")) // 16
    print(
        f"\nafter the cut: {noticed:.1f} s until it was noticed, {again:.1f} s until the next step"
        f"\n{total - sum(map(len, ids.values()))} of {IMAGES * given.epochs} images trained twice"
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", default="1:2", help="2: not elastic")
    parser.add_argument("--cut", type=int, default=3, choices=(2, 3), help="host that is cut off")
    parser.add_argument("--epochs", type=int, default=24)
    given, job_words = parser.parse_known_args()
    given.elastic = ":" in given.workers
    if not inside(ENVIRONMENT):
        return
    logs = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    try:
        good = story(given, job_words, logs)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        print(f"logs: {logs}")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
