"""The layers of backbones: frozen ones, and learning rates that fall towards the input."""

from __future__ import annotations

import pytest
import torch

from wcl_ray.config import ModelConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import build_backbone, build_encoder
from wcl_ray.model.layers import freeze, layer_numbers, set_training
from wcl_ray.model.optim import build_optimizer


@pytest.mark.parametrize(
    ("name", "size", "count", "last"),
    [
        ("small", 32, 5, "layer4.0.conv1.weight"),
        ("resnet18", 32, 5, "layer4.1.bn2.bias"),
        ("vit_b_16", 32, 13, "encoder.ln.bias"),
        ("convnext_tiny", 64, 5, "classifier.0.bias"),
        ("swin_t", 64, 5, "norm.bias"),
        ("densenet121", 64, 5, "features.norm5.bias"),
        ("regnet_y_400mf", 64, 5, "trunk_output.block4.block4-5.f.c.1.bias"),
        ("shufflenet_v2_x0_5", 64, 4, "conv5.1.bias"),
        ("googlenet", 64, 4, "inception5b.branch4.1.bn.bias"),
        ("inception_v3", 96, 4, "Mixed_7c.branch_pool.bn.bias"),
        ("mnasnet0_5", 64, 7, "layers.15.bias"),
        ("maxvit_t", 224, 5, "classifier.3.weight"),
        ("timm:vit_tiny_patch16_224", 32, 13, "norm.bias"),
        ("timm:convnext_atto", 64, 5, "head.norm.bias"),
        ("timm:resnet18", 64, 5, "layer4.1.bn2.bias"),
    ],
)
def test_layers_of_libraries(name: str, size: int, count: int, last: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # it computes its sizes
        backbone = build_backbone(name, size)
    layers = layer_numbers(backbone)
    names = [name for name, _ in backbone.named_parameters()]
    assert layers.keys() == set(names)
    assert max(layer_numbers(backbone).values()) + 1 == count
    assert layers[names[0]] == 0
    assert layers[last] == count - 1
    numbers = [layers[name] for name in names]
    assert set(numbers) == set(range(count))


@pytest.mark.parametrize(
    ("name", "timms"),
    [
        ("convnext_tiny", "convnext_tiny"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("densenet121", "densenet121"),
    ],
)
def test_frozen_stages_are_the_same_in_both_libraries(name: str, timms: str) -> None:
    pytest.importorskip("timm")
    trained = []
    for backbone in (name, f"timm:{timms}"):
        with torch.device("meta"):
            network = build_backbone(backbone, 224)
        freeze(network, 3)
        trained.append(sum(p.numel() for p in network.parameters() if p.requires_grad))
    assert trained[0] == trained[1]


def test_a_network_without_known_stages() -> None:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
    with pytest.raises(UserError, match="the stages of this backbone are not known"):
        freeze(backbone, 1)
    freeze(backbone, 0)
    encoder = torch.nn.Module()
    encoder.backbone = backbone
    with pytest.raises(UserError, match=r"train\.layer-decay 1"):
        build_optimizer(encoder, TrainConfig(layer_decay=0.9))


def test_frozen_stages_keep_weights_and_statistics() -> None:
    encoder = build_encoder(ModelConfig(), 32)
    freeze(encoder.backbone, 2)
    optimizer = build_optimizer(encoder, TrainConfig(lr=0.1))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    set_training(encoder)
    encoder(torch.randn(8, 3, 32, 32))[0].square().sum().backward()
    optimizer.step()
    after = encoder.state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.startswith(("backbone.conv1", "backbone.bn1"))}
    assert not {k for k in changed if k.startswith("backbone.layer1")}
    assert {"backbone.layer2.0.conv1.weight", "backbone.layer2.0.bn1.running_mean"} <= changed


def test_rates_fall_towards_the_input() -> None:
    encoder = build_encoder(ModelConfig(), 32)
    optimizer = build_optimizer(encoder, TrainConfig(layer_decay=0.5))
    names = {id(p): name for name, p in encoder.named_parameters()}
    scales = {
        names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]
    }
    assert scales.keys() == set(names.values())
    assert scales["projectors.0.0.weight"] == 1
    assert scales["backbone.layer4.0.conv1.weight"] == 0.5
    assert scales["backbone.layer1.0.bn1.weight"] == 0.0625
    assert scales["backbone.conv1.weight"] == 0.03125
    plain = build_optimizer(encoder, TrainConfig())
    assert [group["lr_scale"] for group in plain.param_groups] == [1, 1]
