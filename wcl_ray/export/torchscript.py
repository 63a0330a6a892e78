"""A TorchScript file (.pt) with the normalisation in it, for PyTorch without any library."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from wcl_ray.export import Loaded, TrainedEncoder, with_normalisation
from wcl_ray.registry import EXPORTS
from wcl_ray.terminal import warn

FILE = "encoder-torchscript.pt"


@EXPORTS.add("torchscript")
def export(encoder: TrainedEncoder, folder: Path) -> Loaded:
    """``torch.jit.load(FILE)(images)``: RGB float (B, 3, s, s) in [0, 1] → (B, F)."""
    network = with_normalisation(encoder)
    example = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    path = str(folder / FILE)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        script = torch.jit.freeze(torch.jit.trace(network, example))
        torch.jit.save(script, path, _extra_files={"input.txt": encoder.input})
        loaded = torch.jit.load(path)
    if any("deprecated" in str(warning.message) for warning in caught):
        warn(f"TorchScript is deprecated in PyTorch {torch.__version__}; consider --to onnx")
    return Loaded(lambda images: loaded(images).detach(), encoder.input)
