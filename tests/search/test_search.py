"""Whole searches through the job: what they leave, and what survives when processes are killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mounts import Mount
from mounts import mount as mount
from pictures import write_parquet
from runs import N, descendants, job, run_script

from wcl_ray.cli import parse


def words(tmp_path: Path, name: str, *more: str, epochs: int = 8, short: int = 4) -> list[str]:
    """A search whose trials have ``short`` of the ``epochs`` of a full run."""
    data = write_parquet(tmp_path / "data", N)
    return [
        "--data.path", data, "--data.label", "species", "--data.image-size", "16",
        "--clusters.columns", "colour", "marks", "size", "--train.batch-size", "24",
        "--train.epochs", str(epochs), "--model.projector", "16", "8", "--trial-epochs",
        str(short),
        "--search.clusters.top-k", "2,4,9,300", "--storage", "runs",  # where it was started
        "--name", name, *more,
    ]  # fmt: skip


def record(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads((folder / "trials.json").read_text())
    except FileNotFoundError:
        return {}
    return found["trials"]


class Search:
    """A search in a process of its own.

    Args:
        address: of the Ray it joins; None: it starts one.
    """

    def __init__(self, tmp_path: Path, *given: str, address: str | None = None) -> None:
        self.output = tmp_path / "output"
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                job(tmp_path, *given, script="tune.py"),
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env=os.environ | ({"RAY_ADDRESS": address} if address else {}),
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def until(self, seen: Callable[[], Any], limit: float = 240) -> Any:
        end = time.monotonic() + limit
        while not (found := seen()):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)
        return found

    def finish(self, limit: float = 420) -> str:
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self.text) from None
        return self.text

    def kill(self) -> None:
        for pid in descendants(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def processes(self, title: str) -> list[int]:
        """Ray processes by their title."""
        found = []
        for pid in descendants(self.process.pid):
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if title in name:
                found.append(pid)
        return found


def check_results(tmp_path: Path, name: str, trials: int, epochs: int = 8) -> None:
    folder = tmp_path / "runs" / name
    table = pq.read_table(io.BytesIO((folder / "results.parquet").read_bytes()))
    assert table.num_rows == trials
    assert table["trial"].to_pylist() == list(range(trials))
    scores = [row["score"] for row in table.to_pylist() if row["status"] == "finished"]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    best = parse(["--config", str(folder / "best.yaml")])
    confirmed = (folder / "confirm").exists()  # then any of the best may win
    rows = [row for row in table.to_pylist() if confirmed or row["score"] == max(scores)]
    taus = [row["loss.temperature"] for row in rows]
    assert best.loss.temperature in [*taus, 0.2]  # the default, if it is within noise of the best
    assert best.train.epochs == epochs
    assert 'src="plotly.min.js"' in (folder / "report.html").read_text()
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000


@pytest.mark.slow
def test_a_search_and_the_run_of_its_best(
    tmp_path: Path,
    ray_local: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--trials", "3", "--grace", "1", "--evaluate.every", "1", "--confirm", "1"]
    more += ["--confirm-seeds", "2", "--seed", "5"]
    given = words(tmp_path, "one", *more, epochs=3, short=2)
    given += ["--search.train.lr", "1e-3,1e30"]  # diverges at once: a failed trial
    text = Search(tmp_path, *given, address=ray_local).finish()
    folder = tmp_path / "runs/one"
    trials = record(folder)
    assert len(trials) == 3, text
    # hopeless and repeated granularities go before any trial
    assert "left out" in text
    assert "300" in text.split("left out")[1].splitlines()[0]
    assert text.index("H(Z|T)") < text.index("trial 0")
    values = {tuple(row["values"]["clusters.top-k"]) for row in trials.values()}
    assert values <= {(2,), (4,), (9,)}
    failed = 0
    for row in trials.values():
        assert row["status"] in ("finished", "stopped", "failed")
        if row["status"] != "failed":
            epochs = sorted(map(int, row["evaluations"]))
            assert epochs == list(range(1, epochs[-1] + 1))  # a report after every evaluation
            assert row["quality"]["clusters"] > 1
        else:
            failed += 1
            assert re.search(r"the loss is not finite at step \d", row["error"])
            assert row["restarts"] == 0  # the same again would fail the same way
    assert failed
    assert len(list(folder.glob("trials/*/config.json"))) == 3
    assert not list(folder.glob("trials/*/rounds/*/train/*"))  # checkpoints of trials go at the end
    check_results(tmp_path, "one", 3, epochs=3)
    full = json.loads((folder / "confirm/trials.json").read_text())["trials"]
    assert len(full) == 4  # the best setting and the default, which lies outside the space
    assert all(max(map(int, row["evaluations"])) == 3 for row in full.values())
    settings: dict[str, list[dict[str, Any]]] = {}
    for key, row in full.items():
        run = folder / "confirm/trials" / key
        assert json.loads((run / "config.json").read_text())["config"]["seed"] == 5  # of the split
        setting = {k: v for k, v in row["values"].items() if k != "seed"}
        assert row["default"] == (setting not in [other["values"] for other in trials.values()])
        row["weights"] = (run / "encoder.safetensors").read_bytes()
        settings.setdefault(str(setting), []).append(row)
    for a, b in settings.values():
        assert {a["values"]["seed"], b["values"]["seed"]} == {5, 6}
        assert a["weights"] != b["weights"]
        assert a["quality"] == b["quality"]  # of the same clusters of the same training images
    verdict = next(line for line in text.splitlines() if line.startswith("verdict"))
    named = (folder / "best.yaml").read_text()
    within = "within noise" in verdict or "the defaults are the best" in verdict
    assert ("temperature: 0.2\n" in named) == within, verdict
    assert "(2 seeds)" in named
    assert "seed: 5" in named
    assert "at full length" in text
    assert not list(folder.glob("confirm/trials/*/rounds/*/train/*"))

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run_script(monkeypatch, "tune.py", *given, "--resume")
    printed = capsys.readouterr().out
    assert "is finished" in printed
    assert verdict in printed
    run_script(monkeypatch, "cluster.py", "--config", str(folder / "best.yaml"))
    assert "H(Z|T)" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_trial_killed_worker_and_killed_driver(tmp_path: Path) -> None:
    given = words(tmp_path, "killed", "--trials", "3", "--scheduler", "none", "--sampler", "random")
    given += ["--evaluate.every", "1", "--train.checkpoint-steps", "2", "--concurrent", "2"]
    given += ["--confirm", "0"]
    folder = tmp_path / "runs/killed"
    search = Search(tmp_path, *given)

    def evaluated(count: int) -> bool:
        return sum(len(row["evaluations"]) for row in record(folder).values()) >= count

    def metrics(trial: str) -> list[dict[str, Any]]:
        lines = (folder / f"trials/{trial}/metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def all_have_checkpoints() -> bool:
        rows = record(folder).values()
        return len(rows) >= 2 and all(row["evaluations"] for row in rows)

    search.until(all_have_checkpoints)
    begun = {key: metrics(key)[0] for key in record(folder)}
    victim = search.until(lambda: search.processes("ray::ImplicitFunc"))[0]
    os.kill(victim, signal.SIGKILL)  # a trial
    search.until(lambda: "is restarted" in search.text)
    restarted = search.until(
        lambda: [key for key, row in record(folder).items() if row["restarts"]]
    )
    search.until(lambda: evaluated(3))
    workers = search.until(lambda: search.processes("RayTrainWorker"))
    os.kill(workers[0], signal.SIGKILL)
    search.until(lambda: evaluated(5))
    search.kill()  # the driver and all it started
    before = record(folder)

    resumed = Search(tmp_path, *given, "--resume")
    text = resumed.finish()
    assert resumed.process.returncode == 0, text
    after = record(folder)
    assert set(before) <= set(after)  # trials keep their names and what was known of them
    for key, row in before.items():
        assert row["evaluations"].items() <= after[key]["evaluations"].items()
        assert after[key]["values"] == row["values"]
    assert len(after) == 3
    assert restarted[0] in after
    found = metrics(restarted[0])
    first = [row for row in found if row["epoch"] == 1 and "loss" not in row]
    assert len(first) == 1  # told once
    # it resumed from its checkpoint: else its first epoch would have been done and noted again
    assert found[0] == begun[restarted[0]]
    for row in after.values():
        assert row["status"] == "finished"
        assert sorted(map(int, row["evaluations"])) == [1, 2, 3, 4]
    check_results(tmp_path, "killed", 3)


@pytest.mark.slow
def test_kmeans_grid_without_labels(tmp_path: Path, ray_local: str) -> None:
    data = write_parquet(tmp_path / "data", N)
    given = [
        "--data.path", data, "--data.image-size", "16", "--clusters.kind", "kmeans",
        "--train.batch-size", "24", "--train.epochs", "4", "--model.projector", "16", "8",
        "--trial-epochs", "1", "--train.rounds", "2", "--train.warmup-rounds", "0",
        "--sampler", "grid", "--trials", "4",
        "--scheduler", "median", "--search.clusters.k", "4,12", "--search.loss.temperature",
        "0.1", "--concurrent", "2", "--scale.workers", "2", "--storage",
        str(tmp_path / "runs"), "--name", "grid", "--confirm", "0",
    ]  # fmt: skip
    search = Search(tmp_path, *given, address=ray_local)
    text = search.finish()
    assert search.process.returncode == 0, text
    assert "if even" in text
    trials = record(tmp_path / "runs/grid")
    cells = {
        (r["values"]["loss.temperature"], r["values"]["clusters.k"][0]) for r in trials.values()
    }
    assert cells == {(0.1, 4), (0.1, 12)}
    for row in trials.values():
        assert row["evaluations"]["1"]["rank_me"] > 1
        assert row["quality"]["clusters"] <= row["values"]["clusters.k"][0]
    best = parse(["--config", str(tmp_path / "runs/grid/best.yaml")])
    assert best.clusters.kind == "kmeans"
    assert (best.train.epochs, best.train.rounds) == (4, 2)


@pytest.mark.slow
def test_a_search_on_a_full_disk_trains_its_failed_trial_again(
    tmp_path: Path, ray_local: str, mount: Mount
) -> None:
    place = mount("size=20m")  # a checkpoint has 15
    given = words(tmp_path, "full", "--trials", "1", "--scheduler", "none", "--concurrent", "1")
    given += ["--trial-epochs", "2", "--confirm", "0", "--scale.max-failures", "0"]
    given[given.index("--storage") + 1] = str(place)
    search = Search(tmp_path, *given, address=ray_local)
    text = search.finish()
    assert search.process.returncode == 1, text
    last = text.splitlines()[-1]
    assert re.search("^error: .*/checkpoint_.* no space left.*--resume continues", last), text
    assert "Traceback" not in text
    (failed,) = record(place / "full").items()
    assert failed[1]["status"] == "failed"
    assert "no space left" in failed[1]["error"]
    mount("size=200m")
    resumed = Search(tmp_path, *given, "--resume", address=ray_local)
    text = resumed.finish()
    assert resumed.process.returncode == 0, text
    trials = record(place / "full")
    assert failed[0] in trials
    for row in trials.values():
        assert (row["status"], row["error"]) == ("finished", "")
    lines = (place / f"full/trials/{failed[0]}/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert max(row.get("restarts", 0) for row in rows) == 1  # it resumed from its checkpoint


HOPELESS = [
    "--search.clusters.top-k",
    "9",
    "--train.batch-size",
    "2",
    "--clusters.samples-per-cluster",
    "1",
]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--search.loss.temprature", "1"], "did you mean loss.temperature"),
        (HOPELESS, "of the anchors would meet no positive"),
        (["--validation", "0.999"], "training images, fewer than 24"),
        (["--metric", "knn", "--data.split-by", "nothing"], "'nothing' is not a column"),
        (["--search.model.backbone", "resnet18,resnet19"], "resnet19"),
        (["--search.clusters.columns", "colour,colours"], "'colours' is not a column"),
        (["--search.clusters.level", "1,2"], "no effect on clusters of kind attributes"),
        (["--search.train.batch-size", "24,4096"], "fewer than 4096"),
        (["--search.loss.temperature", "0.1,inf"], "not a finite number"),
        (["--sampler", "grid", "--trials", "2"], "grid needs at least"),
        (["--search.seed", "1,2"], "is the same for all trials"),
    ],
)
@pytest.mark.usefixtures("ray_local")
def test_wrong_input_before_any_trial(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_script(monkeypatch, "tune.py", *words(tmp_path, "wrong", *more))
    assert end.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "runs/wrong").exists()
