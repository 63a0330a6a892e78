"""Formats for other libraries, one per module. A new one is a function decorated with
``@EXPORTS.add("NAME")``:

    (encoder: TrainedEncoder, folder: Path) → Loaded

It writes one file or several into an empty local folder, and returns what the library that is meant
to read them makes of them. That must be the same features, which is checked before anything reaches
the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from wcl_ray.data.augment import normalise
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import (
    Statistics,
    build_backbone,
    load_exported,
    read_metadata,
    remove_classifier,
    statistics_of,
)

# images (B, 3, s, s) float, RGB in [0, 1] → features (B, F)
Features = Callable[[torch.Tensor], torch.Tensor]
TOLERANCE = 1e-5  # of the largest feature; the usual difference is below 1e-6


@dataclass(frozen=True)
class Loaded:
    """An export as its library has read it back.

    Attributes:
        features: computes features.
        input: what images it takes, for people.
    """

    features: Features
    input: str


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder to be exported.

    Attributes:
        name: of the backbone, a value of ``model.backbone``.
        image_size: s, side of the images in pixels. feature_dim: F.
        statistics: mean and standard deviation by which images are normalised for the state.
        backbone: in eval mode; (B, 3, s, s), normalised by ImageNet's statistics → (B, F).
        facts: of the run, for people: heading → text.
    """

    name: str
    image_size: int
    feature_dim: int
    statistics: Statistics
    backbone: nn.Module
    facts: Mapping[str, str]

    @staticmethod
    def of(weights: bytes, facts: Mapping[str, str]) -> TrainedEncoder:
        """The encoder of the content of an ``encoder.safetensors``."""
        backbone, metadata = load_exported(weights), read_metadata(weights)
        size, width = int(metadata["image_size"]), int(metadata["feature_dim"])
        return TrainedEncoder(
            metadata["backbone"], size, width, statistics_of(metadata), backbone, facts
        )

    @property
    def short_side(self) -> int:
        """Length of an image's short side, in pixels, of which the centre s × s is taken."""
        return self.image_size if self.image_size <= 64 else round(self.image_size * 8 / 7)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The backbone's state without a classifier, under the names of its library."""
        return {name: value.contiguous() for name, value in self.backbone.state_dict().items()}

    @property
    def input(self) -> str:
        """What images an export takes that holds the normalisation, for people."""
        return (
            f"float32 (batch, 3, {self.image_size}, {self.image_size}): RGB in [0, 1], not "
            f"normalised; the centre of an image whose short side is {self.short_side} pixels"
        )

    @property
    def normalised_input(self) -> str:
        """The same for an export of the state alone."""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in self.statistics)
        return (
            f"float32 (batch, 3, {self.image_size}, {self.image_size}): RGB in [0, 1], normalised "
            f"by mean {mean} and std {std}; the centre of an image whose short side is "
            f"{self.short_side} pixels"
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, F) of images (B, 3, s, s) in [0, 1]; the reference for all formats."""
        with torch.inference_mode():
            features: torch.Tensor = self.backbone(normalise(images))
        return features

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, s, s) in [0, 1] as the state takes them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in self.statistics)
        return (images - mean) / std

    def plain_backbone(self) -> nn.Module:
        """The backbone, on images normalised by ``statistics``, without hooks."""
        network = build_backbone(self.name, self.image_size)
        remove_classifier(network, self.name)
        network.load_state_dict(self.state)
        return network.eval()

    def load_into(self, network: nn.Module, state: dict[str, torch.Tensor], option: str) -> None:
        """Load a state that a network of another library must have name by name.

        Raises:
            UserError: their names or shapes differ.
        """
        wanted = {name: value.shape for name, value in network.state_dict().items()}
        if wanted == {name: value.shape for name, value in state.items()}:
            network.load_state_dict(state)
            return
        why = "its network of this name has other weights"
        if isinstance(self.backbone, ResNet) and isinstance(self.backbone.maxpool, nn.Identity):
            why = (
                f"for images of {self.image_size} pixels it has a 3×3 stem without pooling, which "
                "that library's does not have"
            )
        raise self.refusal(option, why)

    def refusal(self, option: str, why: str) -> UserError:
        """The error for a backbone that a format has no place for."""
        return UserError(
            f"--to {option} does not take the backbone {self.name!r}: {why}; use --to onnx or "
            "--to torchscript"
        )


class Normalised(nn.Module):
    """A backbone with the normalisation in front: (B, 3, s, s) float in [0, 1] → (B, F)."""

    def __init__(self, backbone: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone(
            (images - self.get_buffer("mean")) / self.get_buffer("std")
        )
        return features.flatten(1)


def with_normalisation(encoder: TrainedEncoder) -> Normalised:
    """The whole encoder in one module, in eval mode."""
    return Normalised(encoder.plain_backbone(), encoder.statistics).eval()


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn the import of a package that is not installed into one line with the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed: pip install "wcl_ray[export]"') from None


def check_features(encoder: TrainedEncoder, features: Features) -> float:
    """Compare exported features with the encoder's, for one image and for three.

    Returns:
        The largest difference, relative to the largest feature if that is above 1.

    Raises:
        UserError: they differ.
    """
    images = torch.rand(3, 3, encoder.image_size, encoder.image_size, generator=_generator())
    worst = 0.0
    for batch in (images[:1], images):
        wanted, got = encoder.features(batch), features(batch)
        scale = max(1.0, float(wanted.abs().max()))
        same_shape = wanted.shape == got.shape
        worst = max(worst, float((wanted - got).abs().max()) / scale if same_shape else torch.inf)
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported {encoder.name} gives other features than the run's encoder (they differ "
            f"by {worst:.1e}); nothing was written. Please report it"
        )
    return worst


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def model_card(encoder: TrainedEncoder, library: str, usage: str) -> str:
    """README.md of a folder in the form of the Hugging Face Hub.

    Args:
        library: ``library_name`` of the hub. usage: Python code.
    """
    rows = "\n".join(f"| {name} | {_cell(text)} |" for name, text in encoder.facts.items())
    return f"""---
library_name: {library}
pipeline_tag: image-feature-extraction
tags:
- wcl_ray
- contrastive-learning
---

# Image encoder {_cell(encoder.facts.get("run", ""))}

A backbone `{encoder.name}` without a classifier: an image becomes {encoder.feature_dim} features.
It was trained by the method {_cell(encoder.facts.get("method", ""))} of wcl_ray.

```python
{usage.strip()}
```

**Input:** {encoder.normalised_input}.

| | |
|---|---|
{rows}
"""


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
