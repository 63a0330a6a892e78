"""Stages of a run: each is skipped when its file is there, and takes its part of the options."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wcl_ray.runs.clusters
import wcl_ray.runs.pretrain
import wcl_ray.runs.rounds
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.columns import ColumnSummary
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import ClustersConfig, Config, LossConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.runs.capacity import Scale
from wcl_ray.runs.clusters import (
    _summary,
    cluster_images,
    qualities,
    report,
)
from wcl_ray.runs.folder import CLUSTERED, ENCODER, EVALUATION, ROUND_DONE, claim
from wcl_ray.runs.levels import check_level_options, check_levels
from wcl_ray.runs.preflight import CheckedImages
from wcl_ray.runs.pretrain import evaluate, pretrain
from wcl_ray.runs.round_clusters import RoundResult
from wcl_ray.runs.rounds import Arm, train_round, train_rounds
from wcl_ray.storage import Folder

PACKAGE = Path(__file__).parents[2] / "wcl_ray"


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    """Two rounds of k-means; nothing is there to work with, so that no stage can be done."""
    nothing: Any = None
    config = Config(
        clusters=ClustersConfig(kind="kmeans"), train=TrainConfig(epochs=4, rounds=2), name="one"
    )
    return Arm(
        config=config,
        run=Folder(f"{tmp_path}/one", None),
        images=nothing,
        stream=nothing,
        base=Assignment(np.arange(3), np.full((3, 1), -1, np.int32), ("instance",)),
        evaluator=nothing,
        start=nothing,
        title="kmeans",
        scale=Scale(min_workers=1, max_workers=1, cpus=1.0, gpu=False),
    )


def table(arm: Arm) -> Assignment:
    return replace(arm.base, clusters=np.array([[0], [0], [1]], np.int32), names=("kmeans-2",))


def test_levels_that_the_loss_needs(arm: Arm) -> None:
    coarse, fine, across = [0, 0, 1], [0, 1, 2], [0, 1, 1]

    def levels(*columns: list[int]) -> Assignment:
        clusters = np.array(columns, np.int32).T
        return replace(arm.base, clusters=clusters, names=("level-1", "level-2")[: len(columns)])

    siblings = LossConfig(negatives="siblings")
    check_levels(siblings, levels(coarse, fine))
    check_levels(siblings, levels([0, 0, -1], [0, 1, -1]))
    check_levels(LossConfig(level_weights=(1.0, 0.0)), levels(coarse, across))
    for loss, table, words in (
        (siblings, levels(coarse), "needs several levels, not level-1 alone"),
        (siblings, levels(coarse, across), "clusters of level-2 are not inside those of level-1"),
        (siblings, levels(fine, coarse), "give levels from coarse to fine"),
        (
            LossConfig(level_weights=(1.0,)),
            levels(coarse, fine),
            r"has 1 number\(s\) for the level",
        ),
    ):
        with pytest.raises(UserError, match=words):
            check_levels(loss, table)


@pytest.mark.parametrize(
    ("clusters", "loss", "words"),
    [
        ({"top_k": (10,)}, {}, "needs several levels, not attributes-10 alone"),
        ({"kind": "tags"}, {}, "needs several levels, not tags-20 alone"),
        ({"kind": "hierarchy", "columns": ("a", "b")}, {}, "needs several levels, not hierarchy a"),
        ({"kind": "instance"}, {}, "needs several levels, not instance alone"),
        (
            {"top_k": (5, 9)},
            {"negatives": "all", "level_weights": (1.0,)},
            r"1 number\(s\) for the level\(s\) attributes-5, attributes-9",
        ),
        (
            {"kind": "hierarchy", "columns": ("a", "b"), "types": ("a=date",), "level": (1, 2)},
            {},
            r"clusters\.types has no effect on clusters\.kind hierarchy",
        ),
    ],
)
def test_options_are_refused_before_ray_starts(
    clusters: dict[str, Any],
    loss: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wcl_ray.runs.pretrain, "connect", lambda _: pytest.fail("Ray starts"))
    config = Config(
        clusters=ClustersConfig(**clusters),
        loss=LossConfig(**({"negatives": "siblings"} | loss)),
        storage=str(tmp_path),
    )
    with pytest.raises(UserError, match=words):
        pretrain(config)


def test_levels_that_are_not_known_before_there_are_clusters() -> None:
    for options in (
        {"from_": "a.csv"},
        {"kind": "hierarchy", "columns": ("path",), "level": (1, 2)},
        {"kind": "kmeans", "k": (4, 9), "nested": True},
    ):
        clusters: Any = options
        loss = LossConfig(negatives="siblings", level_weights=(1.0, 2.0))
        check_level_options(ClustersConfig(**clusters), loss)


def test_clusters_of_a_run_are_not_made_again(arm: Arm) -> None:
    claim(arm.run, arm.config)
    (arm.run / "rounds/000").write(CLUSTERED, table(arm).to_parquet())
    clusters = cluster_images(arm.config, CheckedImages(arm.images), arm.run)
    assert clusters.clusters.tolist() == [[0], [0], [1]]
    assert clusters.names == ("kmeans-2",)


def test_columns_are_told_and_kept(arm: Arm, capsys: pytest.CaptureFixture[str]) -> None:
    columns = (ColumnSummary("taken", "date", 9, 0.5, "4 seasons"),)
    clustering = Clustering(table(arm), None, 0, columns=columns)
    quality = qualities(clustering.assignment, None, arm.config)
    report(clustering, quality, arm.config)
    assert "taken    date        9     50.0%   4 seasons\n" in capsys.readouterr().out
    (kept,) = json.loads(_summary(clustering, quality))["columns"]
    assert kept["outcome"] == "4 seasons"


def test_a_round_that_is_done_is_not_trained_again(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*unused: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(wcl_ray.runs.rounds, "fit", fit)
    done = {"checkpoint": "checkpoint_7", "seconds": 2.5}
    arm.folder(1).write(ROUND_DONE, json.dumps(done).encode())
    result = train_round(arm, 1, table(arm), None)
    assert result.seconds == 2.5
    assert result.checkpoint.path == arm.folder(1).file("train/checkpoint_7")
    assert result.assignment.names == ("kmeans-2",)


def test_the_warm_up_is_one_training(arm: Arm) -> None:
    def first(run: str, **changes: Any) -> int:
        config = replace(arm.config, train=TrainConfig(epochs=10, **changes))
        return replace(arm, config=config, run=arm.run / run).first_round

    assert first("new") == 1  # two of five rounds
    assert first("new", rounds=5, warmup_rounds=4) == 3
    assert first("new", rounds=5, warmup_rounds=0) == 0
    older = arm.run / "begun"  # versions that trained every round on its own
    (older / "rounds/000/train").write("checkpoint_manager_snapshot.json", b"{}")
    (arm.run / "went-on/rounds/000").write(ROUND_DONE, b"{}")
    assert first("begun") == first("went-on") == 0
    metadata = Config(train=TrainConfig(epochs=10))
    assert replace(arm, config=metadata, run=arm.run / "new").first_round == 0


def test_rounds_that_are_trained(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of each training, in a new run and in one that an older version began."""
    trained: list[tuple[int, int]] = []

    def train(arm: Arm, r: int, assignment: Assignment, last: RoundResult | None) -> RoundResult:
        assert (last is None) == (not trained)
        trained.append((r, arm.first_epoch(r + 1)))
        return RoundResult(None, assignment, 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(wcl_ray.runs.rounds, "train_round", train)
    monkeypatch.setattr(wcl_ray.runs.rounds, "cluster_round", lambda arm, *_: arm.base)
    monkeypatch.setattr(wcl_ray.runs.rounds, "export_encoder", lambda *_: None)
    config = replace(arm.config, train=TrainConfig(epochs=10, rounds=5))
    train_rounds(replace(arm, config=config))
    assert trained == [(1, 4), (2, 6), (3, 8), (4, 10)]
    trained.clear()
    (arm.run / "rounds/000").write(ROUND_DONE, b"{}")
    train_rounds(replace(arm, config=config))
    assert trained == [(0, 2), (1, 4), (2, 6), (3, 8), (4, 10)]


def test_an_arm_with_its_encoder_is_not_trained_again(arm: Arm) -> None:
    """It gives the clusters of its last round."""
    arm.run.write(ENCODER, b"")
    arm.folder(1).write(CLUSTERED, table(arm).to_parquet())
    assert train_rounds(arm).names == ("kmeans-2",)


def test_an_evaluation_is_not_done_again(arm: Arm) -> None:
    arm.run.write(EVALUATION, json.dumps({"knn": 0.5}).encode())
    assert evaluate(arm, table(arm)) == {"knn": 0.5}


def takes_all(path: Path) -> bool:
    """Whether a function or a dataclass of a module takes the whole configuration of a run."""
    for node in ast.walk(ast.parse(path.read_text())):
        kinds = [node] if isinstance(node, ast.AnnAssign) else []
        kinds += getattr(node, "args", None).args if isinstance(node, ast.FunctionDef) else []  # type: ignore[union-attr]
        if any(k.annotation is not None and ast.unparse(k.annotation) == "Config" for k in kinds):
            return True
    return False


def test_stages_take_their_part_of_the_configuration() -> None:
    """The whole of it goes through the recipe, its rounds and the worker, and where it is kept."""
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if takes_all(p)}
    files = {name for name in files if not name.startswith(("search/", "report/"))}
    assert files <= {
        "runs/initial.py",
        "runs/pretrain.py",
        "runs/round_clusters.py",
        "runs/rounds.py",
        "runs/clusters.py",
        "runs/cluster.py",
        "runs/prepare.py",
        "runs/folder.py",
        "runs/stored.py",
        "runs/trained.py",
        "train/worker.py",
    }
