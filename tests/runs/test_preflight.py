"""What is known before training is said before training; what an evaluation left out is said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pictures import png, write_parquet

import wcl_ray.runs.cluster
import wcl_ray.runs.embed
import wcl_ray.runs.evaluate
import wcl_ray.runs.pretrain
import wcl_ray.search.run
from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ScaleConfig,
    TrainConfig,
)
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import compare_labels, left_out
from wcl_ray.model.encoder import EncoderSpec, build_encoder
from wcl_ray.runs.cluster import cluster
from wcl_ray.runs.embed import embed_run
from wcl_ray.runs.evaluate import evaluate_run
from wcl_ray.runs.folder import ENCODER, claim
from wcl_ray.runs.initial import check_backbone
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.run import search
from wcl_ray.storage import Folder

N = 96


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        data=DataConfig(
            path=write_parquet(tmp_path / "data", N),
            eval_path=str(tmp_path / "test"),
            label="species",
            image_size=16,
        ),
        clusters=ClustersConfig(columns=("colour", "marks"), top_k=(4,)),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=1),
        scale=ScaleConfig(workers="1", cpus_per_worker=1),
        storage=str(tmp_path / "runs"),
        name="one",
    )


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is never reached."""

    def train(*unused: Any) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(wcl_ray.runs.pretrain, "train_rounds", train)


def broken(count: int) -> pa.Array:
    """N images, the first of them cut off in the middle of their pixels."""
    return pa.array([png(i)[:600] if i < count else png(i) for i in range(N)], pa.binary())


@pytest.mark.usefixtures("ray_local", "untrained")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"species": pa.nulls(N, pa.string())}, ["'species' has no value among the test images"]),
        (
            {"species": ["x", "y"] * (N // 2)},
            ["none of the 96 test images", "'x' (48)", "'s0' (24)"],
        ),
        ({"image": broken(40)}, ["40 of 96 test images cannot be read", "data.max-bad"]),
    ],
)
def test_test_images_of_no_use_are_found_before_training(
    config: Config, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    write_parquet(tmp_path / "test", N, **changes)
    with pytest.raises(UserError) as caught:
        pretrain(config)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "runs/one").exists()


@pytest.mark.usefixtures("ray_local", "untrained")
def test_some_test_images_of_no_use_are_told_before_training(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    species = [None] * 8 + ["new"] * 8 + ["s0", "s1"] * ((N - 16) // 2)
    write_parquet(tmp_path / "test", N, species=species, image=broken(3))
    with pytest.raises(AssertionError, match="it trains"):
        pretrain(replace(config, data=replace(config.data, max_bad=0.1)))
    said = capsys.readouterr().out
    assert "8 test images have no label" in said
    assert "9.1% of the test images count as wrong" in said
    assert "1 class(es) have no training image: 'new' (8)" in said
    assert "3 of 96 test images that were tried cannot be read" in said
    faults = (tmp_path / "runs/one/faults.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in faults] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("alexnet", 32),
        ("inception_v3", 64),
        ("maxvit_t", 32),
        ("timm:efficientformer_l1", 40),
        ("timm:vit_tiny_patch16_224", 8),
    ],
)
def test_a_backbone_that_does_not_take_the_images_is_named(backbone: str, size: int) -> None:
    with pytest.raises(UserError, match=f"{backbone}.*{size} pixels.*image-size"):
        check_backbone(EncoderSpec(ModelConfig(backbone=backbone), size))


def test_a_backbone_without_finite_features_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pooled(torch.nn.Module):  # the mean over a map of 0 × 0
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x[:, :, 16:, 16:].mean((2, 3)))  # type: ignore[no-any-return]

    monkeypatch.setattr("wcl_ray.model.encoder.build_backbone", lambda name, size: Pooled())
    check_backbone(EncoderSpec(ModelConfig(), 32))
    with pytest.raises(UserError, match=r"16 pixels .its features are not finite"):
        check_backbone(EncoderSpec(ModelConfig(), 16))


def test_check_of_the_backbone_covers_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    class Demanding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("Expected more than 1 value per channel when training")
            return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    monkeypatch.setattr("wcl_ray.model.encoder.build_backbone", lambda name, size: Demanding())
    with pytest.raises(UserError, match=r"32 pixels .Expected more than 1 value per channel"):
        check_backbone(EncoderSpec(ModelConfig(), 32))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_an_evaluation_left_out_is_printed_and_kept(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Folder(f"{tmp_path}/runs/one", None)
    claim(run, config)
    encoder = build_encoder(config.model, 16)
    run.write(ENCODER, EncoderSpec(config.model, 16).export(encoder))
    species = [None] * 8 + ["new"] * 8 + ["s0", "s1"] * ((N - 16) // 2)
    write_parquet(tmp_path / "test", N, species=species, image=broken(40))
    figures = evaluate_run(
        run.uri, {}, config.evaluate, config.scale, out=str(tmp_path / "figures.json")
    )
    said = capsys.readouterr().out
    assert "40 of 96 test images cannot be read and are left out of the evaluation: 0: " in said
    assert figures["unreadable"]["test"]["count"] == figures["faults"] == 40
    assert figures["test_images"] == N - 40
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    write_parquet(tmp_path / "test", N, species=species)
    figures = evaluate_run(run.uri, {}, config.evaluate, config.scale)
    said = capsys.readouterr().out
    assert "8 test images have no label and are left out" in said
    assert "count as wrong, since their 1 class(es) have no training image: 'new' (8)" in said
    assert figures["unlabelled"] == {"training": 0, "test": 8}
    assert figures["unseen_classes"] == {"new": 8}


def test_labels_are_compared_by_class() -> None:
    train = Counter({"a": 5, "b": 5, None: 2})
    found = compare_labels("kind", train, Counter({"a": 3, "c": 1, None: 4}))
    assert found["unlabelled"] == {"training": 2, "test": 4}
    assert found["unseen"] == 0.25
    assert found["unseen_classes"] == {"c": 1}
    many = Counter({f"new{i}": 1 for i in range(9)} | {"a": 1})
    (line,) = left_out(compare_labels("kind", Counter({"a": 1, "b": 1}), many))
    assert "9 class(es)" in line
    assert "and 4 more" in line
    with pytest.raises(UserError, match=r"none of the 3 test images .*'c' \(3\).*'a' \(5\)"):
        compare_labels("kind", train, Counter({"c": 3}))
    assert left_out(compare_labels("kind", Counter("ab"), Counter("ab"))) == []
    assert left_out({"train_images": 3}) == []  # of an older run


def of_features(config: Config) -> Config:
    once = TrainConfig(batch_size=24, epochs=1, rounds=1, warmup_rounds=0)
    return replace(config, clusters=ClustersConfig(kind="kmeans", k=(4,)), train=once)


@pytest.mark.parametrize("job", ["pretrain", "search", "cluster", "run", "evaluate", "embed"])
@pytest.mark.parametrize("typo", ["{}/phtos", "{}/phtos/*.parquet", "file://{}/phtos"])
def test_a_path_that_is_not_there_before_ray_is_started(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch, job: str, typo: str
) -> None:
    def connect(*unused: Any) -> None:
        raise AssertionError("Ray is started")

    modules = [wcl_ray.runs.pretrain, wcl_ray.search.run, wcl_ray.runs.cluster]
    for module in (*modules, wcl_ray.runs.evaluate, wcl_ray.runs.embed):
        monkeypatch.setattr(module, "connect", connect)
    run = Folder(f"{config.storage}/done")
    claim(run, config)
    run.write(ENCODER, b"weights")
    path = typo.format(tmp_path)
    config = replace(config, data=replace(config.data, path=path, eval_path=None))
    wanted = SearchConfig(data=config.data, model=config.model, storage=config.storage)
    features = of_features(config)
    calls: dict[str, Callable[[], Any]] = {
        "pretrain": lambda: pretrain(config),
        "search": lambda: search(wanted, lambda outcome: "", {}),
        "cluster": lambda: cluster(config),
        "run": lambda: cluster(features, run=run.uri),
        "evaluate": lambda: evaluate_run(run.uri, {"path": path}, EvaluateConfig(), ScaleConfig()),
        "embed": lambda: embed_run(run.uri, f"{tmp_path}/features", {"path": path}),
    }
    with pytest.raises(UserError, match=r"phtos.*: there is no "):
        calls[job]()
    assert not (tmp_path / "features").exists()


def test_a_run_that_is_not_there_before_ray_is_started(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(wcl_ray.runs.cluster, "connect")
    features = of_features(config)
    with pytest.raises(UserError, match="runs/typo"):
        cluster(features, run=f"{config.storage}/typo")
