"""Runs that start from weights: what they keep, train, export and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pictures import png, write_parquet
from runs import config as config
from runs import untrained_run

from wcl_ray.config import ClustersConfig, Config, ModelConfig
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import EncoderSpec, load_exported, read_metadata
from wcl_ray.runs.folder import RESULTS, claim
from wcl_ray.runs.initial import FILE, start_of, with_image_size
from wcl_ray.runs.load import load_encoder
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.storage import Folder

VIT = "timm:vit_tiny_patch16_224"


def with_model(config: Config, size: int = 32, **model: object) -> Config:
    return replace(
        config,
        model=ModelConfig(projector=(16, 8), **model),  # type: ignore[arg-type]
        data=replace(config.data, image_size=size),
    )


def stored(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_frozen_transformer_learns_in_its_last_blocks(config: Config, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = EncoderSpec(ModelConfig(backbone=VIT), 96).build().backbone
    torch.save({"state_dict": network.state_dict()}, tmp_path / "vit.pth")
    source = write_parquet(tmp_path / "few", 48)
    config = with_model(
        replace(config, data=replace(config.data, path=source, label=None)),
        size=64,
        backbone=VIT,
        weights=str(tmp_path / "vit.pth"),
        freeze_stages=11,
        drop_path=0.1,
    )
    config = replace(config, train=replace(config.train, layer_decay=0.7, epochs=1))
    pretrain(config)
    run = tmp_path / "runs/one"
    first, last = stored(run / FILE), stored(run / "encoder.safetensors")
    changed = {name for name, value in last.items() if not torch.equal(value, first[name])}
    layers = {name.split(".")[1] for name in changed if name.startswith("blocks")}
    assert layers == {"10", "11"}  # the stem and ten blocks are frozen
    assert not {name for name in changed if name.startswith(("patch_embed", "pos_embed", "cls"))}
    metadata = read_metadata((run / "encoder.safetensors").read_bytes())
    assert json.loads(metadata["mean"]) == [0.5, 0.5, 0.5]
    assert load_encoder(str(run)).encode([png(0)]).shape == (1, 192)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_starts_from_another_and_no_longer_needs_it(config: Config, tmp_path: Path) -> None:
    source = Path(untrained_run(tmp_path / "runs/one"))
    again = with_model(config, size=16, weights=str(source), freeze_stages=1)
    again = replace(
        again,
        name="two",
        data=replace(again.data, label=None),
        clusters=ClustersConfig(kind="kmeans", k=(4,)),
        train=replace(again.train, epochs=1, rounds=1, warmup_rounds=0),
    )
    pretrain(again)
    first, last = stored(source / "encoder.safetensors"), stored(tmp_path / "runs/two" / FILE)
    assert all(torch.equal(first[name], last[name]) for name in first)
    trained = stored(tmp_path / "runs/two/encoder.safetensors")
    for name in ("conv1.weight", "bn1.running_mean"):  # frozen, with its statistics
        assert torch.equal(trained[name], first[name])
    assert not torch.equal(trained["layer1.0.conv1.weight"], first["layer1.0.conv1.weight"])
    (source / "encoder.safetensors").unlink()
    kept = start_of(again, Folder(str(tmp_path / "runs/two")))
    assert kept.weights == (tmp_path / "runs/two" / FILE).read_bytes()


def test_images_have_the_size_of_the_weights(config: Config, tmp_path: Path) -> None:
    assert with_image_size(with_model(config, size=0)).data.image_size == 32
    for backbone, side in {"resnet18": 224, "timm:convnext_atto": 224}.items():
        model = with_model(config, size=0, backbone=backbone, weights="pretrained")
        assert with_image_size(model).data.image_size == side
    spec = EncoderSpec(ModelConfig(projector=(8,)), 48)
    (tmp_path / "encoder.safetensors").write_bytes(spec.export(spec.build()))
    for source in (tmp_path, tmp_path / "encoder.safetensors"):
        sized = with_image_size(with_model(config, size=0, weights=str(source)))
        assert sized.data.image_size == 48
    given = with_model(config, size=40, weights=str(tmp_path))
    assert with_image_size(given).data.image_size == 40


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"weights": "no/where.pth"}, "model.weights no/where.pth: there is no such file and no"),
        ({"weights": "/"}, "model.weights /: there is no such file and no run"),
        ({"weights": "pretrained"}, "the family 'small' has no published weights"),
        ({"backbone": "vit_b_16", "drop_path": 0.2}, "vit_b_16 has no stochastic depth"),
        ({"backbone": "timm:vgg11", "drop_path": 0.2}, "timm's vgg11 has no stochastic depth"),
        ({"drop_path": 0.2}, "the family 'small' has no stochastic depth"),
    ],
)
def test_weights_that_cannot_be_used(
    config: Config, tmp_path: Path, model: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pretrain(with_model(config, **model))  # type: ignore[arg-type]
    assert not (tmp_path / "runs/one/config.json").exists()


def test_nothing_is_left_to_train(config: Config, tmp_path: Path) -> None:
    spec = EncoderSpec(ModelConfig(projector=(8,)), 32)
    (tmp_path / "encoder.safetensors").write_bytes(spec.export(spec.build()))
    with pytest.raises(UserError, match=r"freeze-stages 5 leaves nothing to train.*has 5 stages"):
        pretrain(with_model(config, weights=str(tmp_path), freeze_stages=5))
    with pytest.raises(ValueError, match="would freeze random weights"):
        ModelConfig(freeze_stages=1)
    assert load_exported(tmp_path / "encoder.safetensors").image_size == 32


@pytest.mark.parametrize("flags", [{"resume": True}, {"start_or_resume": True}])
def test_a_finished_run_is_shown_without_its_source(
    config: Config, tmp_path: Path, flags: dict[str, bool]
) -> None:
    run = Folder(str(tmp_path / "runs/one"))
    claim(run, with_model(config, size=48, weights="gone.pth"))
    run.write(RESULTS, json.dumps({"variants": {}, "seconds": 1.0}).encode())
    config = replace(with_model(config, size=0, weights="gone.pth"), **flags)  # type: ignore[arg-type]
    assert pretrain(config)["variants"] == {}


def test_a_store_size_below_the_size_of_the_weights(config: Config) -> None:
    config = with_model(config, size=0, backbone="resnet18", weights="pretrained")
    config = replace(config, data=replace(config.data, store_size=64))
    with pytest.raises(UserError, match=r"store-size 64 is smaller than data.image-size 224, the"):
        with_image_size(config)


def test_what_is_loaded_is_printed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = EncoderSpec(ModelConfig(backbone=VIT), 64).build().backbone
    state = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save({"student": {}, "teacher": state}, tmp_path / "vit.pth")
    start_of(with_model(config, 64, backbone=VIT, weights=str(tmp_path / "vit.pth")), None)
    said = " ".join(capsys.readouterr().out.split())
    assert "vit.pth (teacher), names after backbone., 150 tensors" in said
    assert "images of 64 px normalised by mean (0.5, 0.5, 0.5) std (0.5, 0.5, 0.5)" in said


def test_a_start_is_adapted_to_options_that_want_the_same_weights(
    config: Config, tmp_path: Path
) -> None:
    spec = EncoderSpec(ModelConfig(), 32, statistics=((0.5,) * 3, (0.5,) * 3))
    (tmp_path / "encoder.safetensors").write_bytes(spec.export(spec.build()))
    common = start_of(with_model(config, weights=str(tmp_path)), None)
    (tmp_path / "encoder.safetensors").unlink()
    frozen = with_model(config, weights=str(tmp_path), freeze_stages=2)
    start = common.adapt(frozen)
    assert start is not None
    assert start.weights is common.weights
    assert start.encoder.statistics == spec.statistics
    assert start.encoder.model.freeze_stages == 2
    for other in ({"weights": "x"}, {"weights": str(tmp_path), "backbone": "resnet18"}):
        assert common.adapt(with_model(config, **other)) is None  # type: ignore[arg-type]
    assert common.adapt(with_model(config, 16, weights=str(tmp_path))) is None
