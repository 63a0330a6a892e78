"""A state dict of torchvision's network, without its classifier (.pth)."""

from __future__ import annotations

from pathlib import Path

import torch

from wcl_ray.export import Loaded, TrainedEncoder
from wcl_ray.model.encoder import remove_classifier
from wcl_ray.registry import EXPORTS

FILE = "encoder-torchvision.pth"


@EXPORTS.add("torchvision")
def export(encoder: TrainedEncoder, folder: Path) -> Loaded:
    """``get_model(NAME).load_state_dict(torch.load(FILE), strict=False)`` misses only the head.

    Raises:
        UserError: not torchvision's network, or one with a stem for small images.
    """
    import torchvision.models

    name = encoder.name
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise encoder.refusal("torchvision", "it is not torchvision's")
    torch.save(encoder.state, folder / FILE)
    options = {"image_size": encoder.image_size} if name.startswith("vit_") else {}
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": False}
    network = torchvision.models.get_model(name, weights=None, **options)
    remove_classifier(network, name)
    encoder.load_into(network, torch.load(folder / FILE, weights_only=True), "torchvision")
    network.eval()
    return Loaded(
        lambda images: network(encoder.normalised(images)).detach(), encoder.normalised_input
    )
