"""Names of Hugging Face's transformers become those of timm and torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from wcl_ray.model.huggingface import renamed_weights


def check(state: dict[str, torch.Tensor], network: nn.Module, extra: set[str]) -> None:
    """Every weight of the network is there in its shape, and nothing but ``extra`` beside it."""
    wanted = network.state_dict()
    renamed = renamed_weights(state)
    assert wanted.keys() <= renamed.keys()
    assert renamed.keys() - wanted.keys() == extra
    for name, value in wanted.items():
        assert renamed[name].shape == value.shape, name


def vit(depth: int, width: int, old: bool) -> dict[str, torch.Tensor]:
    """As transformers 5 names a ViTModel in memory, or (``old``) in its files."""
    state = {
        "embeddings.cls_token": torch.zeros(1, 1, width),
        "embeddings.position_embeddings": torch.zeros(1, 197, width),
        "embeddings.patch_embeddings.projection.weight": torch.zeros(width, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": torch.zeros(width),
        "layernorm.weight": torch.zeros(width),
        "layernorm.bias": torch.zeros(width),
        "pooler.dense.weight": torch.zeros(width, width),
    }
    hidden = 4 * width
    for n in range(depth):
        block = f"encoder.layer.{n}." if old else f"layers.{n}."
        shapes = {("layernorm_before", 0): width, ("layernorm_after", 0): width}
        names = {
            "query": "attention.attention.query" if old else "attention.q_proj",
            "key": "attention.attention.key" if old else "attention.k_proj",
            "value": "attention.attention.value" if old else "attention.v_proj",
            "out": "attention.output.dense" if old else "attention.o_proj",
        }
        for (name, _), size in shapes.items():
            state[f"{block}{name}.weight"] = state[f"{block}{name}.bias"] = torch.zeros(size)
        for number, name in enumerate(names.values()):
            state[f"{block}{name}.weight"] = torch.full((width, width), float(number))
            state[f"{block}{name}.bias"] = torch.full((width,), float(number))
        first = "intermediate.dense" if old else "mlp.fc1"
        second = "output.dense" if old else "mlp.fc2"
        state[f"{block}{first}.weight"] = torch.zeros(hidden, width)
        state[f"{block}{first}.bias"] = torch.zeros(hidden)
        state[f"{block}{second}.weight"] = torch.zeros(width, hidden)
        state[f"{block}{second}.bias"] = torch.zeros(width)
    return state


@pytest.mark.parametrize("prefix", ["", "vit."])
@pytest.mark.parametrize("old", [True, False])
def test_vit(old: bool, prefix: str) -> None:
    timm = pytest.importorskip("timm")
    state = {prefix + name: value for name, value in vit(2, 192, old).items()}
    network = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0)
    check(state, network, {f"{prefix}pooler.dense.weight"})
    joined = renamed_weights(state)["blocks.1.attn.qkv.bias"]
    assert joined.tolist() == [0.0] * 192 + [1.0] * 192 + [2.0] * 192  # in this order


def test_convnext() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("convnext_atto", num_classes=0, conv_mlp=False)
    state = {}
    for name, value in network.state_dict().items():
        new = name.replace("stem.0.", "embeddings.patch_embeddings.")
        new = new.replace("stem.1.", "embeddings.layernorm.").replace("head.norm.", "layernorm.")
        new = new.replace(".blocks.", ".layers.").replace(".conv_dw.", ".dwconv.")
        new = new.replace(".mlp.fc", ".pwconv").replace(".gamma", ".layer_scale_parameter")
        new = new.replace(".downsample.", ".downsampling_layer.")
        if ".layers." in new:
            new = new.replace(".norm.", ".layernorm.")
        state["encoder." + new if new.startswith("stages") else new] = value
    check(state, network, set())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet(name: str) -> None:
    network = torchvision.models.get_model(name)
    network.fc = nn.Identity()
    state = {}
    for key, value in network.state_dict().items():
        parts = key.split(".")
        if not parts[0].startswith("layer"):
            kind = "convolution" if parts[0] == "conv1" else "normalization"
            state[f"resnet.embedder.embedder.{kind}.{parts[-1]}"] = value
            continue
        layer = f"resnet.encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}."
        if parts[2] == "downsample":
            kind = "convolution" if parts[3] == "0" else "normalization"
            state[f"{layer}shortcut.{kind}.{parts[-1]}"] = value
        else:
            kind = "convolution" if parts[2].startswith("conv") else "normalization"
            state[f"{layer}layer.{int(parts[2][-1]) - 1}.{kind}.{parts[-1]}"] = value
    check(state, network, set())
