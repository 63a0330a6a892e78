"""Rounds of clustering and training on a real Ray, and the jobs that use their encoder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import columns, png, write_parquet
from runs import check_exactly_once, descendants, job, steps_of

from wcl_ray.cli import parse
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    ScaleConfig,
    TrainConfig,
)
from wcl_ray.data.augment import centre
from wcl_ray.data.decode import decode_batch
from wcl_ray.data.images import open_images
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import load_exported, load_projector
from wcl_ray.renamed import renamed_tree
from wcl_ray.runs.cluster import cluster
from wcl_ray.runs.clusters import build_clusters
from wcl_ray.runs.embed import embed_run
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.storage import Folder

N = 192


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_parquet(tmp_path / "data", N)
    return Config(
        data=DataConfig(path=data, image_size=16),
        clusters=ClustersConfig(kind="kmeans", k=(4, 12)),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=3, rounds=3, audit=True),
        scale=ScaleConfig(workers="1", cpus_per_worker=1),
        storage=str(tmp_path / "runs"),
        name="one",
    )


def assignment(run: Path, r: int) -> Assignment:
    return Assignment.from_parquet((run / f"rounds/{r:03d}/assignment.parquet").read_bytes())


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_rounds_and_the_jobs_after_them(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also SimCLR beside them, on two workers: they refuse to train a projector without a loss."""
    config = replace(
        config,
        data=replace(config.data, label="species", holdout=0.2),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5),
        train=replace(config.train, epochs=4, rounds=4, warmup_rounds=2),
        compare=True,
    )
    results = pretrain(config)
    assert set(results["variants"]) == {"kmeans", "SimCLR"}
    printed = capsys.readouterr().out
    run = tmp_path / "runs/one"
    images = results["variants"]["kmeans"]["train_images"]
    check_exactly_once(run, images, 24, 4)

    # the warm-up trains on single images, in one go, the rounds after it on two granularities
    assert (assignment(run, 0).clusters == -1).all()
    assert [f.parent.name for f in sorted(run.glob("rounds/*/round.json"))] == ["001", "002", "003"]
    for r in (2, 3):
        table = assignment(run, r)
        assert table.names == ("kmeans-4", "kmeans-12")
        for g, k in enumerate((4, 12)):
            sizes = table.sizes(g)
            assert 2 <= len(sizes) <= k
            assert sizes.sum() == images
            assert sizes.min() >= 2  # clusters.min-size
    rows = metrics(run)
    positives = {row["epoch"]: row["positives"] for row in rows if "loss" in row}
    assert positives[0] == positives[1] == 0
    assert positives[2] > 1
    assert positives[3] > 1

    # what every round says of itself
    first, second = (row for row in rows if "round" in row)
    assert (first["round"], first["epoch"], second["round"]) == (2, 2, 3)
    assert "kmeans-4_nmi_previous" not in first
    assert 0 <= second["kmeans-4_nmi_previous"] <= 1
    assert -1 <= second["kmeans-12_ari_previous"] <= 1
    assert {"rank_me", "uniformity", "feature_std", "kmeans-12_nmi_label"} <= first.keys()
    facts = json.loads((run / "rounds/003/clusters.json").read_text())
    assert sum(facts["sizes"]["kmeans-4"].values()) == len(assignment(run, 3).sizes(0))
    assert facts["kmeans"]["vectors"] == images
    assert facts["kmeans"]["iterations"][-1]["empty"] == 0
    assert "round 3 of 4: projector" in printed
    assert re.search(r"^kmeans, warm-up +epoch +2\.00/4", printed, re.MULTILINE)
    assert re.search(r"^kmeans, round 4 of 4 +epoch +4\.00/4", printed, re.MULTILINE)
    assert "objective" in printed
    assert "agreement kmeans-12 with the previous round NMI" in printed
    assert "% of sgemm" in printed

    # checkpoints of the last round only, and the exported projector
    assert not list(run.glob("rounds/00[012]/train/checkpoint_*"))
    for rounds, heads in (("rounds/003", {"0", "1"}), ("baseline/rounds/000", {"0"})):
        states = sorted((run / rounds).glob("train/checkpoint_*/state.pt"))
        state = torch.load(states[-1], weights_only=True)["model"]
        assert {key.split(".")[1] for key in state if key.startswith("projectors.")} == heads
    head = load_projector((run / "projector.safetensors").read_bytes())
    backbone = load_exported(run / "encoder.safetensors")
    check_embed(config, tmp_path, backbone, head)
    check_cluster_job(config, tmp_path, capsys)


def check_embed(
    config: Config, tmp_path: Path, backbone: torch.nn.Module, head: torch.nn.Module
) -> None:
    run, out = str(tmp_path / "runs/one"), tmp_path / "features"
    facts = embed_run(run, str(out), {}, features="projector", columns=("species",))
    assert facts["rows"] == N  # those held out, too
    assert facts["dimensions"] == 8
    table = pq.read_table(out)
    assert sorted(table["id"].to_pylist()) == list(range(N))
    row = table.filter(pa.compute.equal(table["id"], 7)).to_pylist()[0]
    assert row["species"] == "s3"
    decoded = decode_batch([png(7)], 16)
    with torch.inference_mode():
        crop = centre(*decoded.tensors(), 16)
        wanted = torch.nn.functional.normalize(head(backbone(crop)), dim=1)[0]
    np.testing.assert_allclose(row["feature"], wanted.numpy(), atol=1e-5)

    # a part that is missing is made again, the others are left alone
    parts = sorted(out.glob("part-*.parquet"))
    lost = parts[0].read_bytes()
    before = {part.name: part.stat().st_mtime_ns for part in parts[1:]}
    parts[0].unlink()
    embed_run(run, str(out), {}, features="projector", columns=("species",))
    again = pq.read_table(out)
    assert sorted(again["id"].to_pylist()) == list(range(N))
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}.items()
    ids = pq.read_table(pa.BufferReader(lost))["id"].to_pylist()
    assert set(ids) <= set(again["id"].to_pylist())
    with pytest.raises(UserError, match="features was projector, now backbone"):
        embed_run(run, str(out), {}, features="backbone", columns=("species",))
    with pytest.raises(UserError, match=r"'colr' is not a column.*'colour'"):
        embed_run(run, str(tmp_path / "other"), {}, columns=("colr",))
    with pytest.raises(UserError, match="is not empty and holds no features"):
        embed_run(run, str(tmp_path / "data"), {})
    with pytest.raises(UserError, match="is not a run folder"):
        embed_run(str(tmp_path), str(tmp_path / "other"), {})

    # images without the run's label
    (tmp_path / "plain").mkdir()
    for n in range(6):
        (tmp_path / f"plain/{n}.png").write_bytes(png(n))
    assert embed_run(run, str(tmp_path / "bare"), {"path": str(tmp_path / "plain")})["rows"] == 6
    stored = json.loads((tmp_path / "bare/_embedding.json").read_text())
    again = embed_run(run, str(tmp_path / "bare"), {"path": f"{tmp_path}/plain/"})
    assert again == stored  # nothing to do

    # other images, one of them broken, one id twice
    images = [b"broken" if n == 3 else png(n) for n in range(30)]
    other = write_parquet(tmp_path / "other-data", 30, image=pa.array(images, pa.binary()))
    with pytest.raises(UserError, match=r"1 of 30 images cannot be read.*data\.max-bad 1\.0%"):
        embed_run(run, str(tmp_path / "other"), {"path": other})
    facts = embed_run(run, str(tmp_path / "other"), {"path": other, "max_bad": 0.1})
    assert (facts["rows"], facts["faults"], facts["dimensions"]) == (29, 1, 256)
    fault = json.loads((tmp_path / "other/_faults.jsonl").read_text())
    assert fault["key"] == "3"
    double = write_parquet(tmp_path / "double", 30, id=pa.array([*range(29), 4], pa.int64()))
    with pytest.raises(UserError, match="id 4 occurs more than once"):
        embed_run(run, str(tmp_path / "third"), {"path": double})


def check_cluster_job(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """k-means of the vectors that the embedding left, and of a run's images."""
    data = DataConfig(path=str(tmp_path / "features"), label="species")
    vectors = replace(config, data=data)
    out, centroids = tmp_path / "clusters.parquet", tmp_path / "centroids.npz"
    quality = cluster(vectors, out=str(out), centroids=str(centroids))
    assert [q.name for q in quality] == ["kmeans-4", "kmeans-12"]
    assert all(q.i_zt is not None and q.images == N for q in quality)
    table = Assignment.from_parquet(out.read_bytes())
    features = pq.read_table(tmp_path / "features").sort_by("id")
    x = np.array(features["feature"].to_pylist(), np.float32)
    stored = np.load(centroids)
    for g, name in enumerate(table.names):  # the centroids have the numbers of the clusters
        nearest = (x @ stored[name].T).argmax(1)
        assert (nearest == table.clusters[:, g]).mean() > 0.98
    capsys.readouterr()
    cluster(replace(config, data=DataConfig()), run=str(tmp_path / "runs/one"))
    assert "kmeans-12" in capsys.readouterr().out
    images = replace(config, data=DataConfig(path=str(tmp_path / "data")))
    for one, given, words in (
        (images, {"out": str(tmp_path / "data")}, "--out .* is a folder; give the name of a file"),
        (images, {}, "holds no vectors; give Parquet files of vectors"),
        (images, {"run": "x", "checkpoint": "y"}, "are for vectors, not for --run"),
        (vectors, {"column": "species"}, "of type string, not a list"),
        (replace(vectors, data=replace(data, label="kind")), {}, "'kind' is not a column"),
        (replace(vectors, clusters=ClustersConfig(kind="kmeans", k=(500,))), {}, "more than the"),
        (
            replace(images, clusters=ClustersConfig(), train=TrainConfig()),
            {"run": "x"},
            "--run needs",
        ),
    ):
        with pytest.raises(UserError, match=words):
            cluster(one, **given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_killed_while_clustering_and_while_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The power is cut twice: the second time in the middle of an epoch."""
    data = write_parquet(tmp_path / "data", N)
    words = [
        "--data.path", data, "--data.image-size", "16", "--clusters.kind", "kmeans",
        "--clusters.k", "4,12", "--train.rounds", "2", "--train.batch-size", "8",
        "--train.epochs", "3", "--train.checkpoint-steps", "4", "--train.audit",
        "--storage", str(tmp_path / "runs"), "--name", "killed", "--scale.workers", "1",
    ]  # fmt: skip
    run = tmp_path / "runs/killed"
    output = tmp_path / "output"

    def until(*more: str, seen: Callable[[], object]) -> None:
        """Start, and kill the driver, Ray's daemons and the workers when something was seen."""
        with output.open("w") as stream:
            process = subprocess.Popen(
                job(tmp_path, *words, *more), stdout=stream, stderr=subprocess.STDOUT
            )
        limit = time.monotonic() + 300
        while not seen():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < limit, output.read_text()
            time.sleep(0.02)
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    until(seen=lambda: "k-means" in output.read_text())
    assert not (run / "rounds/001/assignment.parquet").exists()
    assert (run / "rounds/000/round.json").exists()
    snapshot = run / "rounds/001/train/checkpoint_manager_snapshot.json"

    def committed() -> bool:
        """A checkpoint of the first epoch of the second round, which goes on."""
        begun = len(list(run.glob("audit/0001/*"))) >= 10
        return begun and snapshot.exists() and "checkpoint_" in snapshot.read_text()

    until("--resume", seen=committed)
    assert not (run / "results.json").exists()
    clusters = (run / "rounds/001/assignment.parquet").read_bytes()
    capsys.readouterr()
    pretrain(parse([*words, "--resume"]))
    printed = capsys.readouterr().out
    # how far back depends on how many uploads were committed before the power was cut
    epoch, step = re.search(r"resuming from epoch (\d), step (\d+)", printed).groups()  # type: ignore[union-attr]
    assert int(epoch) == int(step) // (N // 8)
    assert N // 8 < int(step) < 3 * N // 8  # the first round had one epoch
    assert int(step) % 4 == 0
    assert "k-means" not in printed  # a round's clusters are not made twice
    assert (run / "rounds/001/assignment.parquet").read_bytes() == clusters
    check_exactly_once(run, N, 8, 3)
    assert sum(len(steps) for steps in steps_of(run).values()) == 3 * N // 8
    assert (run / "results.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_images_without_metadata_fall_back_to_kmeans_on_s3(
    config: Config, tmp_path: Path, s3: str
) -> None:
    """Without a warm-up, in a folder whose name is in any script."""
    rows = columns(N)
    bare = [n % 3 == 0 for n in range(N)]
    colour = [None if b else c for b, c in zip(bare, rows["colour"], strict=True)]
    marks = [None if b else m for b, m in zip(bare, rows["marks"], strict=True)]
    images = pa.array([b"broken" if n == 5 else png(n) for n in range(N)], pa.binary())
    data = write_parquet(tmp_path / "gaps", N, colour=colour, marks=marks, image=images)
    config = replace(
        config,
        data=replace(config.data, path=data, endpoint=s3),
        clusters=ClustersConfig(
            columns=("colour", "marks"), top_k=(3,), missing="kmeans", k=(5,), features="backbone"
        ),
        train=replace(config.train, epochs=2, rounds=2, warmup_rounds=0, audit=False),
        storage="s3://bugs/rüns #1 100%",
    )
    results = pretrain(config)
    run = Folder("s3://bugs/rüns #1 100%/one", s3)
    base = Assignment.from_parquet((run / "metadata").read("assignment.parquet"))
    assert ((base.clusters[:, 0] < 0) == (base.ids % 3 == 0)).all()
    known, k = base.clusters[:, 0] >= 0, base.clusters.max() + 1
    for r in (0, 1):
        both = Assignment.from_parquet((run / f"rounds/{r:03d}").read("assignment.parquet"))
        np.testing.assert_array_equal(both.clusters[known], base.clusters[known])
        added = both.clusters[~known, 0]
        assert added.min() == k
        assert k + 1 <= added.max() < k + 5
    assert any(n.startswith("checkpoint_") for n in (run / "rounds/001/train").names())
    assert not (run / "rounds/000/train").names()

    names = ("config.json", "metrics.jsonl", "encoder.safetensors", "results.json", "faults.jsonl")
    for name in names:
        assert run.exists(name), name
    assert any(name.startswith("events.") for name in run.names())
    assert json.loads(run.read("faults.jsonl"))["key"] == "5"
    assert len(run.read("metrics.jsonl").splitlines()) >= 2
    assert load_exported(run.read("encoder.safetensors")).feature_dim == 256
    assert pretrain(replace(config, resume=True)) == results


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_kmeans_of_metadata_makes_one_round(config: Config) -> None:
    clusters = ClustersConfig(
        kind="kmeans", features="metadata", columns=("colour", "marks"), k=(3, 6)
    )
    config = replace(config, clusters=clusters, train=replace(config.train, rounds=0))
    assert (config.rounds, clusters.from_features) == (1, False)
    images = open_images(config.data, config.storage, config.seed)
    table = build_clusters(config, images, show=False)[0].assignment
    assert table.names == ("kmeans-3", "kmeans-6")
    rows = columns(N)
    patterns = [(rows["colour"][i], *rows["marks"][i]) for i in table.ids]
    assert len(set(patterns)) == 6  # as many as clusters, so each is one
    assert len(set(zip(patterns, table.clusters[:, 1].tolist(), strict=True))) == 6


def test_defaults_of_rounds(config: Config) -> None:
    """SimCLR's loss outweighs that of the clusters, but only in rounds."""
    assert (config.instance_weight, config.feature_head) == (5, 1)
    for epochs, warmup in ((2, 1), (3, 1), (5, 2), (100, 2)):
        rounds = replace(config, train=TrainConfig(epochs=epochs))
        assert rounds.warmup_rounds == warmup
    for other in (
        ClustersConfig(),
        ClustersConfig(missing="kmeans"),
        ClustersConfig(kind="kmeans", features="metadata"),
    ):
        plain = replace(config, clusters=other, train=TrainConfig())
        assert (plain.instance_weight, plain.feature_head) == (0, 0)
    assert replace(config, loss=LossConfig(instance_weight=0.0)).feature_head == 0


@pytest.mark.parametrize(("dual", "weight"), [(True, 2.0), (False, 0.0)])
def test_the_second_projector_of_a_stored_run(dual: bool, weight: float) -> None:
    tree = {"loss": {"temperature": 0.1, "dual": dual, "dual_weight": 2.0}, "seed": 3}
    wanted = {"loss": {"temperature": 0.1, "instance_weight": weight}, "seed": 3}
    assert renamed_tree(tree) == wanted


@pytest.mark.usefixtures("ray_local")
def test_wrong_options_of_rounds(config: Config, tmp_path: Path) -> None:
    for changes, words in (
        ({"rounds": 4}, "train.rounds 4 is more than train.epochs 3"),
        ({"warmup_rounds": 3}, "train.warmup-rounds 3 leaves none of 3 rounds"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(config, train=replace(config.train, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train\.rounds 3: clusters of kind attributes do not"):
        replace(config, clusters=ClustersConfig())
    with pytest.raises(UserError, match=r"clusters\.k 500 is more than the 192 rows"):
        pretrain(replace(config, clusters=ClustersConfig(kind="kmeans", k=(500,))))
    assert not (tmp_path / "runs").exists()
