"""A folder for timm (``create_model("local-dir:PATH", pretrained=True)``) and the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from wcl_ray.export import Loaded, TrainedEncoder, model_card, needs_extra
from wcl_ray.registry import EXPORTS

USAGE = """
import timm, torch
from PIL import Image

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    features = model(transform(Image.open("image.jpg").convert("RGB"))[None])
"""


@EXPORTS.add("timm")
def export(encoder: TrainedEncoder, folder: Path) -> Loaded:
    """model.safetensors, config.json and README.md, for timm's networks and those of torchvision
    that timm has, too (resnet18, densenet121, …).

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    write_folder(encoder, folder, "timm")
    (folder / "README.md").write_text(model_card(encoder, "timm", USAGE), encoding="utf-8")
    import timm

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return Loaded(
        lambda images: network(encoder.normalised(images)).detach(), encoder.normalised_input
    )


def write_folder(encoder: TrainedEncoder, folder: Path, option: str) -> None:
    """model.safetensors and config.json in timm's form.

    Args:
        option: the value of ``--to``, for messages.
    """
    with needs_extra():
        import timm
    name = encoder.name.removeprefix("timm:")
    architecture = name.partition(".")[0]
    if architecture not in timm.list_models():
        raise encoder.refusal(option, "timm has no network of this name")
    options: dict[str, Any] = {"img_size": encoder.image_size}
    try:
        network = timm.create_model(architecture, num_classes=0, **options)
    except TypeError:  # takes images of any size
        options = {}
        network = timm.create_model(architecture, num_classes=0)
    encoder.load_into(network, encoder.state, option)
    mean, std = encoder.statistics
    size = encoder.image_size
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.feature_dim,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": bool(options),
            "mean": mean,
            "std": std,
            "interpolation": "bilinear",
            "crop_pct": size / encoder.short_side,
            "crop_mode": "center",
            "num_classes": 0,
            "first_conv": network.pretrained_cfg.get("first_conv"),
            "classifier": network.pretrained_cfg.get("classifier"),
        },
    }
    safetensors.torch.save_file(encoder.state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
