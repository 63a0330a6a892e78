"""Names of weights in Hugging Face's transformers → those of torchvision (ResNet) and timm (ViT,
DINOv2, ConvNeXt)."""

from __future__ import annotations

import re

import torch

BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
STAGE = r"encoder\.stages\.(\d+)\."
RULES: tuple[tuple[str, str], ...] = (
    # ViT and DINOv2
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (BLOCK + r"(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (BLOCK + r"(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (BLOCK + r"attention\.(?:attention\.)?(?:query|q_proj)\.", r"blocks.\1.attn.q."),
    (BLOCK + r"attention\.(?:attention\.)?(?:key|k_proj)\.", r"blocks.\1.attn.k."),
    (BLOCK + r"attention\.(?:attention\.)?(?:value|v_proj)\.", r"blocks.\1.attn.v."),
    (BLOCK + r"attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (BLOCK + r"layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (BLOCK + r"(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    # ConvNeXt
    (r"embeddings\.patch_embeddings\.(?=weight|bias)", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (STAGE + r"layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (STAGE + r"layers\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (STAGE + r"layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (STAGE + r"layers\.(\d+)\.pwconv(\d)\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (STAGE + r"downsampling_layer\.", r"stages.\1.downsample."),
)
RESNET = re.compile(
    r"encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\."
    r"(?:layer\.(?P<layer>\d+)|(?P<shortcut>shortcut))\.(?P<kind>convolution|normalization)\."
)


def renamed_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a transformers model under the names of timm or torchvision.

    Queries, keys and values are joined to timm's ``qkv``. Names that are not known stay.
    """
    convnext = any(".dwconv." in name for name in state)
    weights = {renamed(name, convnext): value for name, value in state.items()}
    for name in [name for name in weights if ".attn.q." in name]:
        names = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in weights for part in names):
            joined = torch.cat([weights.pop(part) for part in names])
            weights[name.replace(".attn.q.", ".attn.qkv.")] = joined
    return weights


def renamed(name: str, convnext: bool = False) -> str:
    """A weight's name in timm or torchvision, by its name in transformers."""
    match = RESNET.search(name)
    if match is not None:
        prefix = f"layer{int(match['stage']) + 1}.{match['block']}."
        convolution = match["kind"] == "convolution"
        if match["shortcut"]:
            return f"{prefix}downsample.{0 if convolution else 1}.{name[match.end() :]}"
        number = int(match["layer"]) + 1
        return f"{prefix}{'conv' if convolution else 'bn'}{number}.{name[match.end() :]}"
    stem = re.search(r"embedder\.embedder\.(convolution|normalization)\.", name)
    if stem is not None:
        return ("conv1." if stem[1] == "convolution" else "bn1.") + name[stem.end() :]
    for pattern, replacement in RULES:
        match = re.search(pattern, name)
        if match is not None:
            return match.expand(replacement) + name[match.end() :]
    final = re.search(r"(?:^|\.)layernorm\.(weight|bias)$", name)
    if final is not None:
        return f"{'head.norm' if convnext else 'norm'}.{final[1]}"
    return name
