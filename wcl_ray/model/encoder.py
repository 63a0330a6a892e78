"""Backbone and projector(s), and the exported encoder that others can load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from wcl_ray.config import ModelConfig
from wcl_ray.data.augment import MEAN, STD
from wcl_ray.errors import UserError
from wcl_ray.registry import BACKBONES


class Encoder(nn.Module):
    """A backbone without its classifier, and one projector per loss head.

    Attributes:
        backbone: (B, 3, s, s) → (B, feature_dim).
        projectors: the cluster head, and the instance head with ``dual``.
        feature_dim: width of the features that are kept after training.
    """

    def __init__(
        self, backbone: nn.Module, feature_dim: int, model: ModelConfig, heads: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.projectors = nn.ModuleList(
            build_projector(feature_dim, model.projector, model.projector_norm)
            for _ in range(heads)
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Backbone features (B, feature_dim) of normalised images (B, 3, s, s)."""
        return self.backbone(x)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Embeddings (B, D) of each head; not normalised."""
        features = self.features(x)
        return tuple(projector(features) for projector in self.projectors)


def build_projector(width: int, widths: tuple[int, ...], norm: bool) -> nn.Sequential:
    """Linear, (batch norm,) ReLU, …, Linear; the last layer bare."""
    layers: list[nn.Module] = []
    for i, out in enumerate(widths):
        layers.append(nn.Linear(width, out, bias=not norm or i == len(widths) - 1))
        if i < len(widths) - 1:
            layers += (
                [nn.BatchNorm1d(out), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
            )
        width = out
    return nn.Sequential(*layers)


def build_encoder(model: ModelConfig, image_size: int, dual: bool = False) -> Encoder:
    """The encoder of a configuration, randomly initialised.

    Raises:
        UserError: an unknown backbone (with the nearest names), timm is not installed, or the
            backbone does not take images of this size.
    """
    try:
        backbone = build_backbone(model.backbone, image_size)
        _head(backbone, model.backbone)[2](nn.Identity())
        backbone.eval()
        with torch.no_grad():
            features = backbone(torch.zeros(2, 3, image_size, image_size))
    except UserError:
        raise
    except Exception as error:  # whatever a library's network raises
        raise wrong_size(model.backbone, image_size, error) from error
    backbone.train()
    if features.ndim != 2:
        shape = tuple(features.shape)
        raise UserError(f"model.backbone {model.backbone!r} gives features of shape {shape}")
    if not torch.isfinite(features).all():  # the mean over a map of 0 × 0
        raise wrong_size(model.backbone, image_size, "its features are not finite")
    return Encoder(backbone, int(features.shape[1]), model, heads=2 if dual else 1)


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from: the same for training, evaluation and export.

    Attributes:
        image_size: side of the training images, in pixels.
        dual: a second projector, for plain InfoNCE.
    """

    model: ModelConfig
    image_size: int
    dual: bool = False

    def build(self) -> Encoder:
        """Randomly initialised, see :func:`build_encoder`."""
        return build_encoder(self.model, self.image_size, self.dual)

    def export(self, encoder: Encoder) -> bytes:
        """Content of ``encoder.safetensors``, see :func:`save_export`."""
        return save_export(encoder, self.model, self.image_size)


def wrong_size(name: str, image_size: int, why: object) -> UserError:
    """The error for a backbone that does not take images of a size."""
    text = " ".join(str(why).split())[:200] or type(why).__name__
    return UserError(
        f"model.backbone {name!r} does not take images of {image_size} pixels ({text}); use another"
        " --data.image-size (most networks are made for 224) or another --model.backbone"
    )


def build_backbone(name: str, image_size: int) -> nn.Module:
    """The whole network of a name, its classifier included.

    Args:
        name: FAMILY or FAMILY:NAME of :data:`wcl_ray.registry.BACKBONES`, or torchvision's NAME.

    Raises:
        UserError: there is none, or it does not take images of this size.
    """
    family, _, model = name.partition(":")
    if family not in BACKBONES:
        family, model = "torchvision", name
    try:
        network: nn.Module = BACKBONES.get(family)(model, image_size)
    except UserError:
        raise
    except (ValueError, AssertionError) as error:
        raise wrong_size(name, image_size, error) from None
    return network


def _head(network: nn.Module, name: str) -> tuple[str, nn.Module, Any]:
    """Name of the classifier, the module, and a function that puts another in its place."""
    off: Any = getattr(network, "reset_classifier", None)  # timm
    if off is not None:

        def reset(_: nn.Module) -> None:
            off(0)

        return "classifier", nn.Identity(), reset
    linear = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:  # squeezenet classifies with a convolution
        raise UserError(f"model.backbone {name!r} has no linear classifier to take off")
    path, module = linear[-1]
    owner, _, leaf = path.rpartition(".")
    parent = network.get_submodule(owner)

    def replace(new: nn.Module) -> None:
        setattr(parent, leaf, new)  # the places of a Sequential are attributes too

    return path, module, replace


def save_export(encoder: Encoder, model: ModelConfig, image_size: int) -> bytes:
    """``encoder.safetensors``: the backbone with the names of its own library.

    The classifier that was taken off is put back as zeros, so that
    ``torchvision.models.resnet18().load_state_dict(state)`` takes the file as it is where the stem
    is torchvision's (images above 64 pixels). The metadata hold what :func:`load_exported` needs.
    """
    whole = build_backbone(model.backbone, image_size)
    state = {k: v.detach().cpu().contiguous() for k, v in encoder.backbone.state_dict().items()}
    for key, value in whole.state_dict().items():
        if key not in state:
            state[key] = torch.zeros_like(value)
    facts = {
        "format": "pt",
        "backbone": model.backbone,
        "image_size": str(image_size),
        "feature_dim": str(encoder.feature_dim),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
    }
    return safetensors.torch.save(state, metadata=facts)


def save_projector(encoder: Encoder, head: int = 0) -> bytes:
    """``projector.safetensors``: the projector of one head, as a ``torch.nn.Sequential``."""
    layers = encoder.projectors[head]
    assert isinstance(layers, nn.Sequential)
    widths = [m.out_features for m in layers if isinstance(m, nn.Linear)]
    facts = {
        "format": "pt",
        "widths": json.dumps(widths),
        "norm": json.dumps(any(isinstance(m, nn.BatchNorm1d) for m in layers)),
        "feature_dim": str(encoder.feature_dim),
    }
    state = {k: v.detach().cpu().contiguous() for k, v in layers.state_dict().items()}
    return safetensors.torch.save(state, metadata=facts)


def load_projector(content: bytes) -> nn.Sequential:
    """The inverse of :func:`save_projector`, in eval mode: (B, feature_dim) → (B, D)."""
    size = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + size])["__metadata__"]
    widths = tuple(json.loads(facts["widths"]))
    projector = build_projector(int(facts["feature_dim"]), widths, json.loads(facts["norm"]))
    projector.load_state_dict(safetensors.torch.load(content))
    return projector.eval()


def load_exported(source: bytes | str | Path) -> nn.Module:
    """The backbone of an exported file, classifier off, in eval mode.

    Args:
        source: a path, or the file's content.

    Returns:
        A module (B, 3, s, s) normalised float → (B, feature_dim), with attributes ``image_size``
        and ``feature_dim``.

    Raises:
        UserError: not an export of this project.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    size = int.from_bytes(content[:8], "little")
    facts = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    if "backbone" not in facts:
        raise UserError("the file is no exported encoder: its metadata name no backbone")
    image_size = int(facts["image_size"])
    backbone = build_backbone(facts["backbone"], image_size)
    _head(backbone, facts["backbone"])[2](nn.Identity())
    wanted = backbone.state_dict().keys()
    state = safetensors.torch.load(content)
    backbone.load_state_dict({key: state[key] for key in wanted})
    backbone.image_size, backbone.feature_dim = image_size, int(facts["feature_dim"])  # type: ignore[assignment]
    return backbone.eval()
