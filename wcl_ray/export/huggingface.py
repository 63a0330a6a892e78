"""A folder for AutoModel and AutoImageProcessor of Hugging Face's transformers, with a model card.

ResNets of torchvision become a ResNetModel. The networks of timm stay timm's: transformers loads
their folders with its TimmWrapperModel, as it does all of timm's models on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torchvision.models.resnet import BasicBlock, ResNet

from wcl_ray.export import Loaded, TrainedEncoder, model_card, needs_extra
from wcl_ray.export.timm import write_folder
from wcl_ray.model.huggingface import renamed
from wcl_ray.registry import EXPORTS

USAGE = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("PATH"), AutoModel.from_pretrained("PATH")
inputs = processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    features = model(**inputs).pooler_output.flatten(1)
"""


@EXPORTS.add("huggingface")
def export(encoder: TrainedEncoder, folder: Path) -> Loaded:
    """model.safetensors, config.json, preprocessor_config.json (ResNets) and README.md.

    Raises:
        UserError: transformers is not installed, or has no such network.
    """
    with needs_extra():
        import transformers
    is_timm = encoder.name.startswith("timm:")
    if is_timm:
        write_folder(encoder, folder, "huggingface")
    elif type(encoder.backbone) is ResNet:
        _write_resnet(encoder, encoder.backbone, folder)
    else:
        raise encoder.refusal("huggingface", "it takes timm's networks and torchvision's ResNets")
    card = model_card(encoder, "timm" if is_timm else "transformers", USAGE)
    (folder / "README.md").write_text(card, encoding="utf-8")
    with _quiet():
        model = transformers.AutoModel.from_pretrained(folder).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = model(encoder.normalised(images)).pooler_output
        return output.flatten(1)

    return Loaded(features, encoder.normalised_input)


def _write_resnet(encoder: TrainedEncoder, network: ResNet, folder: Path) -> None:
    from transformers import BitImageProcessor, ResNetConfig, ResNetModel

    stages = [getattr(network, f"layer{i}") for i in (1, 2, 3, 4)]
    basic = isinstance(stages[0][0], BasicBlock)
    last = "conv2" if basic else "conv3"
    config = ResNetConfig(
        embedding_size=network.conv1.out_channels,
        depths=[len(stage) for stage in stages],
        hidden_sizes=[getattr(stage[-1], last).out_channels for stage in stages],
        layer_type="basic" if basic else "bottleneck",
    )
    model, state = ResNetModel(config), encoder.state
    names = {name: renamed(name) for name in model.state_dict()}
    theirs = {name: state[other] for name, other in names.items() if other in state}
    encoder.load_into(model, theirs, "huggingface")
    with _quiet():
        model.save_pretrained(folder)
    mean, std = encoder.statistics
    BitImageProcessor(
        size={"shortest_edge": encoder.short_side},
        crop_size={"height": encoder.image_size, "width": encoder.image_size},
        resample=2,  # bilinear
        image_mean=list(mean),
        image_std=list(std),
    ).save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
