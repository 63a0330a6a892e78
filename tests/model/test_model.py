"""Encoders, their export, optimisers and the schedule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision

from wcl_ray.config import ModelConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import EncoderSpec, build_backbone, build_encoder, load_exported
from wcl_ray.model.optim import LARS, build_optimizer, clip_gradients, learning_rate


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("small", 32, 256),
        ("resnet18", 32, 512),
        ("resnet50", 64, 2048),
        ("mobilenet_v3_small", 64, 1024),
        ("efficientnet_b0", 64, 1280),
        ("densenet121", 32, 1024),
        ("convnext_tiny", 32, 768),
        ("vit_b_16", 32, 768),
        ("swin_t", 64, 768),
        ("regnet_y_400mf", 32, 440),
        ("timm:resnet10t", 32, 512),
        ("timm:vit_tiny_patch16_224", 32, 192),
    ],
)
def test_backbones(name: str, size: int, width: int) -> None:
    encoder = build_encoder(ModelConfig(backbone=name, projector=(16, 8)), size)
    x = torch.randn(2, 3, size, size)
    assert encoder.feature_dim == width
    assert encoder.features(x).shape == (2, width)
    heads = encoder(x)
    assert len(heads) == 1
    assert heads[0].shape == (2, 8)
    heads[0].square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # DDP needs each of them


def test_two_heads() -> None:
    encoder = build_encoder(ModelConfig(projector=(16, 8), projector_norm=True), 32, dual=True)
    one, two = encoder(torch.randn(4, 3, 32, 32))
    assert one.shape == two.shape == (4, 8)
    assert not torch.allclose(one, two)


def test_stem_follows_the_image_size() -> None:
    small = build_encoder(ModelConfig(backbone="resnet18"), 64).backbone
    large = build_encoder(ModelConfig(backbone="resnet18"), 96).backbone
    assert small.conv1.weight.shape[-1] == 3  # type: ignore[union-attr, index]
    assert large.conv1.weight.shape[-1] == 7  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", ["'resnet81' is unknown", "resnet18"]),
        ("timm:resnet1o", ["timm has no model", "similar names: resnet"]),
        ("squeezenet1_0", ["no linear classifier"]),
        ("vit_b_16", ["of 40 pixels"]),
    ],
)
def test_unknown_backbones(name: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_encoder(ModelConfig(backbone=name), 40)
    for word in words:
        assert word in str(caught.value)


def test_torchvision_takes_the_export(tmp_path: Path) -> None:
    import safetensors.torch

    model = ModelConfig(backbone="resnet18")
    encoder = build_encoder(model, 224)
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(EncoderSpec(model, 224).export(encoder))
    network = torchvision.models.resnet18()
    network.load_state_dict(safetensors.torch.load_file(file))  # strict
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 224, 224)
    assert torch.allclose(network.eval()(x), encoder.eval().features(x), atol=1e-5)


@pytest.mark.parametrize("name", ["small", "resnet18", "timm:resnet10t"])
def test_export_comes_back(name: str, tmp_path: Path) -> None:
    model = ModelConfig(backbone=name)
    encoder = build_encoder(model, 32)
    encoder(torch.randn(8, 3, 32, 32))  # moves the running statistics
    content = EncoderSpec(model, 32).export(encoder)
    (tmp_path / "e.safetensors").write_bytes(content)
    x = torch.randn(2, 3, 32, 32)
    expected = encoder.eval().features(x)
    for source in (content, tmp_path / "e.safetensors"):
        loaded = load_exported(source)
        assert torch.allclose(loaded(x), expected, atol=1e-5)
        assert loaded.feature_dim == encoder.feature_dim
        assert loaded.image_size == 32


def test_a_foreign_file_is_no_export() -> None:
    import safetensors.torch

    with pytest.raises(UserError, match="name no backbone"):
        load_exported(safetensors.torch.save({"x": torch.zeros(1)}))


def test_schedule() -> None:
    train = TrainConfig(lr=2.0, warmup=0.25)
    assert learning_rate(0, train) == pytest.approx(0.02)
    assert learning_rate(0.125, train) == pytest.approx(1.0)
    assert learning_rate(0.25, train) == pytest.approx(2.0)
    middle = 0.25 + 0.75 / 2
    assert learning_rate(middle, train) == pytest.approx(1.0)
    assert learning_rate(1, train) == pytest.approx(0.0)
    flat = TrainConfig(lr=2.0, warmup=0)
    assert learning_rate(0, flat) == 2.0
    assert learning_rate(0.5, flat) == pytest.approx(1 + math.cos(math.pi / 2))


def test_without_clip_gradients_stay_as_they_are() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(clip_gradients(model, 0)) == pytest.approx(5)
    assert model.weight.grad.tolist() == [[3, 4]]
    assert float(clip_gradients(model, 2.5)) == pytest.approx(5)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[1.5, 2.0]]))
    model.weight.grad = torch.tensor([[3e38, 3e38]])  # whose norm is beyond float32
    assert math.isinf(clip_gradients(model, 0))
    assert model.weight.grad.tolist() == [[pytest.approx(3e38)] * 2]  # were 0 or not a number


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimisers_spare_biases(name: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.1))  # type: ignore[arg-type]
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {p.ndim: decay[id(p)] for p in model.parameters()} == {2: 0.1, 1: 0.0}
    before = [p.clone() for p in model.parameters()]
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("vit_b_16", {"class_token", "encoder.pos_embedding"}),
        ("convnext_tiny", {"features.1.0.layer_scale", "features.7.2.layer_scale"}),
        ("timm:vit_tiny_patch16_224", {"cls_token", "pos_embed"}),
        (
            "timm:swin_tiny_patch4_window7_224",
            {"layers.0.blocks.1.attn.relative_position_bias_table"},
        ),
    ],
)
def test_tokens_positions_and_layer_scales_get_no_weight_decay(name: str, exempt: set[str]) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = torch.nn.Module()
    with torch.device("meta"):
        model.backbone = build_backbone(name, 224)
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    rates = {n: decay[id(p)] for n, p in model.backbone.named_parameters()}
    assert {rates[n] for n in exempt} == {0.0}
    kernel = next(n for n, p in model.backbone.named_parameters() if p.ndim == 4)
    assert rates[kernel] == 0.1


def test_an_optimiser_of_other_groups_comes_back() -> None:
    """As version 0.2 kept it: only parameters of one dimension were spared."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.class_token = torch.nn.Parameter(torch.ones(1, 2))
    model.linear = torch.nn.Linear(2, 3)
    matrices = [model.class_token, model.linear.weight]
    options = [(matrices, 0.1), ([model.linear.bias], 0.0)]
    former = torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "lr_scale": 1.0} for params, decay in options],
        lr=0.5,
    )
    model.linear(model.class_token).square().sum().backward()
    former.step()
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1))
    optimizer.load_state_dict(former.state_dict())
    for parameter in model.parameters():
        assert torch.equal(
            optimizer.state[parameter]["exp_avg"], former.state[parameter]["exp_avg"]
        )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}
    other = torch.optim.AdamW(model.parameters())
    with pytest.raises(UserError, match="other groups of weights"):
        optimizer.load_state_dict(other.state_dict())


def test_lars_by_hand() -> None:
    w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    b = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([w, b], lr=1.0, momentum=0.5, weight_decay=0.0, trust=0.1)
    for _ in range(2):
        w.grad, b.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([0.25])
        first = (w.detach().clone(), b.detach().clone())
        optimizer.step()
    # step 1: the gradient is scaled by 0.1·5/2 to [0, 0.5]: w = [3, 3.5], b = 0.75
    assert torch.allclose(first[0], torch.tensor([[3.0, 3.5]]))
    assert torch.allclose(first[1], torch.tensor([0.75]))
    scale = 0.1 * math.hypot(3, 3.5) / 2 * 2
    assert torch.allclose(w, torch.tensor([[3.0, 3.5 - (0.5 * 0.5 + scale)]]))
    assert torch.allclose(b, torch.tensor([0.75 - (0.125 + 0.25)]))
    state = optimizer.state_dict()
    other = LARS([w, b], lr=1.0)
    other.load_state_dict(state)
    assert torch.equal(other.state[w]["momentum"], optimizer.state[w]["momentum"])


def test_lars_takes_plain_steps_of_class_tokens() -> None:
    model = torch.nn.Module()
    model.class_token = torch.nn.Parameter(torch.ones(1, 1, 2))
    model.weight = torch.nn.Parameter(torch.ones(1, 2))
    train = TrainConfig(optimizer="lars", lr=0.5, weight_decay=0.1)
    optimizer = build_optimizer(model, train)
    gradient = torch.tensor([0.25, 1.0])
    for parameter in model.parameters():
        parameter.grad = gradient.expand_as(parameter).clone()
    optimizer.step()
    assert torch.equal(model.class_token.detach().flatten(), 1 - 0.5 * gradient)
    decayed = gradient + 0.1
    scale = 0.001 * math.sqrt(2) / float(decayed.norm())
    assert torch.allclose(model.weight.detach().flatten(), 1 - 0.5 * scale * decayed)


@pytest.mark.parametrize("content", [b"", b"weights", b"\x10" + bytes(7) + b"{"])
def test_a_damaged_file_is_named(content: bytes) -> None:
    with pytest.raises(UserError, match="the encoder's safetensors file is damaged"):
        load_exported(content)
