"""Whole runs on a real Ray: the folder they leave, restarts, killed processes, wrong input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from pictures import png, write_parquet
from PIL import Image
from runs import N, check_exactly_once, descendants, job, steps_of
from runs import config as config

import wcl_ray.runs.clusters
from wcl_ray.config import (
    Config,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    ScaleConfig,
)
from wcl_ray.data.thumbnails import THUMBNAIL_SIZE
from wcl_ray.errors import UserError
from wcl_ray.evaluate.examples import Examples
from wcl_ray.model.encoder import load_exported
from wcl_ray.model.optim import learning_rate
from wcl_ray.report.run import write_page
from wcl_ray.runs.batches import warn_apart
from wcl_ray.runs.clusters import build_clusters
from wcl_ray.runs.evaluate import evaluate_run
from wcl_ray.runs.nodes import check_address
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.storage import Folder


def check_page(run: Path, results: dict[str, Any]) -> None:
    """The page has the figures of the run, and pictures of its images."""
    text = (run / "report.html").read_text()
    for figures in results["variants"].values():
        assert f"{figures['knn']:.1%}" in text
    examples = Examples.from_parquet((run / "examples.parquet").read_bytes())
    assert any(s.words and "colour is" in s.words for s in examples.sheets)
    assert text.count("<img") >= sum(len(s.rows) for s in examples.sheets) > 12
    sizes = pq.read_table(run / "rounds/000/assignment.parquet")["attributes-4"].value_counts()
    assert max(s.size for s in examples.sheets) == max(v["counts"].as_py() for v in sizes)
    species = [f"s{i % 4}" for i in examples.images["id"].to_pylist()]
    assert examples.images["label"].to_pylist() == species
    with Image.open(io.BytesIO(examples.images["thumbnail"][0].as_py())) as picture:
        assert picture.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_run_folder_and_what_follows(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(
        config,
        compare=True,
        model=ModelConfig(backbone="resnet18", projector=(16, 8)),
        data=replace(
            config.data,
            path=write_parquet(tmp_path / "half", N // 2),
            image_size=72,
            store_size=72,
        ),
    )
    results = pretrain(config, write_page)
    printed = capsys.readouterr().out
    run = tmp_path / "runs/one"
    for name in (
        "report.html", "examples.parquet", "baseline/examples.parquet",
        "config.json", "metrics.jsonl", "encoder.safetensors", "results.json", "evaluation.json",
        "rounds/000/assignment.parquet", "rounds/000/clusters.json", "baseline/metrics.jsonl",
        "baseline/encoder.safetensors",
    ):  # fmt: skip
        assert (run / name).exists(), name
    assert list(run.glob("events.*"))
    assert list(run.glob("rounds/000/train/checkpoint_*/state.pt"))
    assert set(results["variants"]) == {"attributes", "SimCLR"}
    for found in results["variants"].values():
        assert 0 <= found["knn"] <= 1
        assert 0 <= found["probe"] <= 1
        assert found["train_images"] + found["test_images"] == N // 2  # a share is held out
        assert 5 < found["test_images"] < 40
    assert results["variants"]["attributes"]["positives"] > 1
    assert results["variants"]["SimCLR"]["positives"] == 0
    assert "linear probe" in printed
    assert "images/s" in printed
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["epoch"] == 1
    table = pq.read_table(run / "rounds/000/assignment.parquet")
    assert table.column_names == ["id", "attributes-4"]
    assert table.num_rows == results["variants"]["attributes"]["train_images"]

    import safetensors.torch

    state = safetensors.torch.load_file(run / "encoder.safetensors")
    torchvision.models.resnet18().load_state_dict(state)
    assert load_exported(run / "encoder.safetensors").feature_dim == 512

    started = time.monotonic()
    assert pretrain(replace(config, resume=True)) == results  # finished: nothing to do
    assert time.monotonic() - started < 3
    with pytest.raises(UserError, match="add --resume"):
        pretrain(config)
    check_page(run, results)
    (run / "report.html").unlink()

    def full_disk(folder: Folder) -> str:
        raise OSError("no space left")

    capsys.readouterr()
    assert pretrain(replace(config, resume=True), full_disk) == results  # the run is not lost
    assert "the page of the run was not written (OSError: no space left); jobs/report.py --run" in (
        capsys.readouterr().out
    )

    own = evaluate_run(str(run), {}, EvaluateConfig(), ScaleConfig())
    assert own["knn"] == pytest.approx(results["variants"]["attributes"]["knn"], abs=0.02)
    assert own["recall@1"] <= own["recall@10"]
    assert sorted(own["few_shot"]) == ["1", "10", "5"]
    other = write_parquet(tmp_path / "other", 96)
    given = {"path": other, "label": "colour"}
    out = str(tmp_path / "figures.json")
    elsewhere = evaluate_run(str(run), given, EvaluateConfig(), ScaleConfig(), out=out)
    assert elsewhere["classes"] == 3
    assert json.loads(Path(out).read_text()) == elsewhere


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_two_workers_see_each_image_once(config: Config, tmp_path: Path) -> None:
    config = replace(
        config,
        data=replace(config.data, label=None, keep="streaming"),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5),
        loss=LossConfig(positives="graded"),
    )
    check_two_workers(pretrain(config), tmp_path / "runs/one", 2)
    assert (tmp_path / "runs/one/similarity.npz").exists()


def check_two_workers(results: dict[str, Any], run: Path, epochs: int) -> None:
    """Both have half of every batch, and no image comes twice in an epoch."""
    check_exactly_once(run, N, 24, epochs)
    for steps in steps_of(run).values():
        assert all(
            len(parts) == 2 and len(parts[0]) == len(parts[1]) == 12 for parts in steps.values()
        )
    found = results["variants"]["attributes"]
    assert "knn" not in found  # no label
    assert "rank_me" in found
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["workers"] == 2
    assert rows[-1]["positives"] > 1
    images = [row["images"] for row in rows]
    assert images == sorted(set(images))  # rows of steps that were trained again are not doubled


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_dropped_and_unreadable_images_do_not_hold_up_the_learning_rate(
    config: Config, tmp_path: Path
) -> None:
    n = 99
    images = [b"text" if i in (3, 50) else png(i)[:150] if i == 70 else png(i) for i in range(n)]
    source = write_parquet(tmp_path / "broken", n, image=pa.array(images, pa.binary()))
    config = replace(
        config,
        data=replace(config.data, path=source, label=None, keep="encoded", max_bad=0.05),
        train=replace(config.train, batch_size=41),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5),
    )
    pretrain(config)
    run = tmp_path / "runs/one"
    check_exactly_once(run, n - 2, 40, 2)  # two steps an epoch, 17 images are left over
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4]
    assert [row["share"] for row in rows] == [0.5, 1, 1]
    assert "eta_seconds" not in rows[0]  # the first step is slow
    assert rows[-1]["eta_seconds"] == 0
    assert rows[1]["eta_seconds"] == pytest.approx(80 / rows[1]["images_per_second"])
    assert rows[-1]["lr"] == pytest.approx(learning_rate(3 / 4, config.train))
    faults = [json.loads(line) for line in (run / "faults.jsonl").read_text().splitlines()]
    assert {fault["key"] for fault in faults} == {"3", "50", "70"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_losses_do_not_depend_on_workers(config: Config, tmp_path: Path) -> None:
    """The batches and views do not depend on the workers; batch norm does, so it is kept apart."""
    losses, batches = [], []
    half = write_parquet(tmp_path / "half", N // 2)
    for name, workers in (("a", "1"), ("b", "2")):
        one = replace(
            config,
            name=name,
            data=replace(config.data, path=half, label=None, image_size=32, store_size=32),
            scale=ScaleConfig(workers=workers, cpus_per_worker=1),
            train=replace(config.train, epochs=1, lr=1e-9),
            model=ModelConfig(backbone="timm:convnext_atto", projector=(16, 8)),  # layer norm
        )
        pretrain(one)
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[-1])["loss"])
        first = steps_of(tmp_path / "runs" / name)[0]
        batches.append([sorted(np.concatenate(first[s])[:, 0].tolist()) for s in sorted(first)])
    assert batches[0] == batches[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # stochastic depth is the rest


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_killed_worker_is_replaced(config: Config, tmp_path: Path) -> None:
    config = replace(
        config,
        data=replace(config.data, label=None, keep="raw"),
        train=replace(config.train, epochs=3, checkpoint_steps=3),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5, max_failures=2),
        loss=LossConfig(instance_weight=1.0, estimator="paper"),
    )
    killed: list[int] = []

    def kill() -> None:
        audit = tmp_path / "runs/one/audit/0001"
        while len(list(audit.glob("*"))) < 8:
            time.sleep(0.05)
        for pid in descendants(os.getpid()):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"RayTrainWorker" in title and not killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = pretrain(config)
    assert killed
    check_two_workers(results, tmp_path / "runs/one", 3)
    assert not (tmp_path / "runs/one/similarity.npz").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_stops_when_too_many_images_turn_out_broken(config: Config, tmp_path: Path) -> None:
    images = [png(i)[:150] if i % 9 == 0 else png(i) for i in range(N)]  # headers are good
    data = write_parquet(tmp_path / "broken", N, image=pa.array(images, pa.binary()))
    source = replace(config.data, path=data, keep="encoded", label=None)
    with pytest.raises(UserError, match=r"images cannot be decoded, more than data\.max-bad 1\.0%"):
        pretrain(replace(config, data=source))
    lines = (tmp_path / "runs/one/faults.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert found
    assert all(int(fault["key"]) % 9 == 0 for fault in found)


@pytest.mark.usefixtures("ray_local")
def test_a_run_that_another_job_has_made_meanwhile(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clusters are not touched."""
    run = tmp_path / "runs/one"

    def slow(*given: Any) -> Any:
        clusters = build_clusters(*given)
        (run / "rounds/000").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        (run / "rounds/000/assignment.parquet").write_text("theirs")
        return clusters

    monkeypatch.setattr(wcl_ray.runs.clusters, "build_clusters", slow)
    with pytest.raises(UserError, match="holds a run already; choose another --name"):
        pretrain(config)
    assert (run / "rounds/000/assignment.parquet").read_text() == "theirs"
    assert not (run / ".alive").exists()


@pytest.mark.parametrize(("workers", "warned"), [(1, False), (8, True)])
def test_partners_out_of_reach_are_told(
    capsys: pytest.CaptureFixture[str], workers: int, warned: bool
) -> None:
    """Composed by every worker among its own images."""
    warn_apart(np.arange(200_000) // 20, batch=4096 // workers)
    assert ("streaming composes batches from" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_nobody_at_the_address(address: str) -> None:
    with pytest.raises(UserError, match=f"no Ray cluster can be joined at {address}"):
        check_address(address)
    for other in (None, "auto", "local", ""):
        check_address(other)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.label": "kind"}, ["'kind' is not a column", "species"]),
        ({"data.label": "always"}, ["only one class"]),
        ({"clusters.columns": ("colour", "shape")}, ["clusters.columns 'shape'", "colour"]),
        ({"clusters.columns": ("species",)}, ["holds the label 'species'"]),
        ({"clusters.types": ("colours=text",)}, ["clusters.types 'colours'", "mean 'colour'?"]),
        (
            {"clusters.types": ("always=text",), "clusters.columns": ("colour",)},
            ["clusters.types has no effect on column 'always'", "not among clusters.columns"],
        ),
        ({"clusters.types": ("species=text",)}, ["column 'species', which is the label"]),
        *(
            (
                {"clusters.types": ("colour=text",), "clusters.columns": ("colour",)}
                | {"clusters.kind": kind},
                [f"clusters.types has no effect on clusters.kind {kind}"],
            )
            for kind in ("hierarchy", "label", "instance")
        ),
        ({"clusters.types": ("colour=date",)}, ["the value 'red' of column 'colour' is not a d"]),
        ({"train.batch_size": 500}, ["fewer than train.batch-size 500"]),
        ({"train.batch_size": 4, "scale.workers": "3"}, ["too small for 3 workers"]),
        ({"model.backbone": "resnet19"}, ["'resnet19' is unknown", "resnet18"]),
        ({"scale.gpu": "yes"}, ["no GPU"]),
        ({"loss.negatives": "siblings"}, ["siblings needs several levels, not attributes-4 alone"]),
        ({"loss.level_weights": (1.0, 2.0)}, ["has 2 number(s) for the level(s) attributes-4"]),
        (
            {
                "clusters.kind": "instance",
                "clusters.columns": ("always",),
                "loss.positives": "graded",
            },
            ["graded: no column gives an attribute", "always: all its values are the same"],
        ),
        (
            {"method": "attributes", "clusters.columns": ("always",)},
            ["method attributes: no column gives an attribute"],
        ),
        (
            {"method": "cmc", "clusters.columns": (), "data.path": "bare"},
            ["method cmc needs metadata columns, but there are none; --data.table adds those of a"],
        ),
        ({"scale.cpus_per_worker": 64.0}, ["more than the 2 CPUs"]),
        ({"data.path": "/no/where"}, ["no such file or folder"]),
        ({"data.eval_path": "/no/where"}, ["no such file or folder"]),
        ({"resume": True}, ["no run 'one'"]),
    ],
)
def test_wrong_input_is_found_before_training(
    config: Config, tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    for file in (tmp_path / "data").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("always", pa.array(["x"] * len(table))), file)
    bare = pq.read_table(tmp_path / "data").select(["id", "image", "species"])
    (tmp_path / "bare").mkdir()
    pq.write_table(bare, tmp_path / "bare/part.parquet")
    for key, value in changes.items():
        value = str(tmp_path / "bare") if value == "bare" else value
        section, _, name = key.rpartition(".")
        if section:
            part = replace(getattr(config, section), **{name: value})
            config = replace(config, **{section: part})
        else:
            config = replace(config, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        pretrain(config)
    for word in words:
        assert word in str(caught.value)
    assert not list((tmp_path / "runs").glob("**/state.pt"))


@pytest.mark.slow
def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    for words, script, message, status in (
        (["--data.pth", "x"], "pretrain.py", "did you mean --data.path?", 2),
        (["--run", str(tmp_path)], "evaluate.py", "is not a run folder", 1),
        (["--data.path", "x", "--clusters.kind", "attribute"], "cluster.py", "attributes", 2),
    ):
        found = subprocess.run(
            job(tmp_path, *words, script=script), capture_output=True, text=True, check=False
        )
        assert found.returncode == status
        assert message in found.stderr + found.stdout
        assert "Traceback" not in found.stderr
