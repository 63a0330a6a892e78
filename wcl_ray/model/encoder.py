"""Backbone and projectors, and the exported encoder."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from wcl_ray.config import ModelConfig
from wcl_ray.data.augment import MEAN, STD
from wcl_ray.errors import UserError, reading
from wcl_ray.model.layers import freeze
from wcl_ray.model.methods import Method, Preset
from wcl_ray.registry import BACKBONES, METHODS

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each colour channel
IMAGENET: Statistics = (MEAN, STD)


class Encoder(nn.Module):
    """A backbone without its classifier, and one projector per loss head.

    Attributes:
        backbone: (B, 3, s, s) → (B, feature_dim).
        projectors: the cluster head, and with ``dual`` the instance head.
        feature_dim: width of the backbone's features, which are used after training.
        method: modules of the method, which are trained but not exported; None for Cl-InfoNCE.
    """

    method: Method | None

    def __init__(
        self, backbone: nn.Module, feature_dim: int, model: ModelConfig, heads: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.method = None
        self.projectors = nn.ModuleList(
            build_projector(feature_dim, model.projector, model.projector_norm)
            for _ in range(heads)
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Backbone features (B, feature_dim) of normalised images (B, 3, s, s)."""
        return self.backbone(x)  # type: ignore[no-any-return]

    def forward(
        self, x: torch.Tensor, attributes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Embeddings (B, D) of each head, not normalised; with attributes, what the method makes of
        them (see :meth:`wcl_ray.model.methods.Method.forward`)."""
        features = self.features(x)
        heads = tuple(projector(features) for projector in self.projectors)
        if self.method is None or attributes is None:
            return heads
        outputs: tuple[torch.Tensor, ...] = self.method(features, heads, attributes)
        return outputs


def build_projector(width: int, widths: tuple[int, ...], norm: bool) -> nn.Sequential:
    """Linear, (batch norm,) ReLU, …, Linear; nothing follows the last layer."""
    layers: list[nn.Module] = []
    for i, out in enumerate(widths):
        layers.append(nn.Linear(width, out, bias=not norm or i == len(widths) - 1))
        if i < len(widths) - 1:
            layers += (
                [nn.BatchNorm1d(out), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
            )
        width = out
    return nn.Sequential(*layers)


def build_encoder(
    model: ModelConfig, image_size: int, dual: bool = False, statistics: Statistics = IMAGENET
) -> Encoder:
    """The encoder of a configuration, randomly initialised, with its first stages frozen.

    Args:
        statistics: the normalisation for which the backbone's weights were trained.

    Raises:
        UserError: an unknown backbone (suggests the nearest names), timm is not installed, the
            backbone does not accept images of this size, or it cannot be frozen or have stochastic
            depth as asked.
    """
    options = {} if model.drop_path is None else {"drop_path": model.drop_path}
    try:
        backbone = build_backbone(model.backbone, image_size, **options)
        remove_classifier(backbone, model.backbone)
        renormalise_inputs(backbone, statistics)
        freeze(backbone, model.freeze_stages)
        backbone.eval()
        with torch.no_grad():
            features = backbone(torch.zeros(2, 3, image_size, image_size))
    except UserError:
        raise
    except Exception as error:  # networks raise many types
        raise wrong_size(model.backbone, image_size, error) from error
    backbone.train()
    if features.ndim != 2:
        shape = tuple(features.shape)
        raise UserError(f"model.backbone {model.backbone!r} gives features of shape {shape}")
    if not torch.isfinite(features).all():  # such as the mean over a 0 × 0 feature map
        raise wrong_size(model.backbone, image_size, "its features are not finite")
    return Encoder(backbone, int(features.shape[1]), model, heads=2 if dual else 1)


@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to build an encoder, for training, evaluation and export.

    Attributes:
        image_size: side of the training images, in pixels.
        dual: add a second projector, for plain InfoNCE.
        statistics: the normalisation for which the backbone's weights were trained.
        method: how it is trained. sizes: see :class:`wcl_ray.model.methods.Method`.
    """

    model: ModelConfig
    image_size: int
    dual: bool = False
    statistics: Statistics = IMAGENET
    method: str = "cl-infonce"
    sizes: tuple[int, ...] = ()

    def build(self) -> Encoder:
        """A randomly initialised encoder, see :func:`build_encoder`."""
        encoder = build_encoder(self.model, self.image_size, self.dual, self.statistics)
        method = METHODS.get(self.method)
        if not issubclass(method, Preset):
            encoder.method = method(encoder.feature_dim, self.model, self.sizes)
            if not method.projects:
                encoder.projectors = nn.ModuleList()
        return encoder

    def export(self, encoder: Encoder) -> bytes:
        """Content of ``encoder.safetensors``, see :func:`save_export`."""
        return save_export(encoder, self)


def wrong_size(name: str, image_size: int, why: object) -> UserError:
    """The error for a backbone that does not accept images of a size."""
    text = " ".join(str(why).split())[:200] or type(why).__name__
    return UserError(
        f"model.backbone {name!r} does not take images of {image_size} pixels ({text}); use another"
        " --data.image-size (most networks are made for 224) or another --model.backbone"
    )


def build_backbone(name: str, image_size: int, **options: Any) -> nn.Module:
    """A network by name, including its classifier.

    Args:
        name: FAMILY or FAMILY:NAME of :data:`wcl_ray.registry.BACKBONES`, or torchvision's NAME.
        options: ``drop_path`` (float) and ``pretrained`` (bool), of families that take them.

    Raises:
        UserError: an unknown name, a network that does not accept images of this size, or a family
            that does not take an option.
    """
    family, _, model = name.partition(":")
    if family not in BACKBONES:
        family, model = "torchvision", name
    build = BACKBONES.get(family)
    for option in options.keys() - inspect.signature(build).parameters.keys():
        missing = {"pretrained": "published weights", "drop_path": "stochastic depth"}[option]
        raise UserError(f"model.backbone {name!r}: the family {family!r} has no {missing}")
    try:
        network: nn.Module = build(model, image_size, **options)
    except UserError:
        raise
    except (ValueError, AssertionError) as error:
        raise wrong_size(name, image_size, error) from None
    return network


def remove_classifier(network: nn.Module, name: str) -> None:
    """Remove the last linear layer of a network, its classifier, in place."""
    reset_classifier: Any = getattr(network, "reset_classifier", None)  # timm
    if reset_classifier is not None:
        reset_classifier(0)
        return
    linear = [path for path, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:  # squeezenet classifies with a convolution
        raise UserError(f"model.backbone {name!r} has no linear classifier to remove")
    parent, _, attribute = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())


def renormalise_inputs(backbone: nn.Module, statistics: Statistics) -> None:
    """Let a backbone take images normalised by ImageNet's statistics, as all here are, whatever its
    weights were trained with."""
    if statistics == IMAGENET:
        return
    (mean, std), (new_mean, new_std) = (
        [torch.tensor(values)[:, None, None] for values in pair] for pair in (IMAGENET, statistics)
    )
    # buffers move with the network; its state is that of its library all the same
    backbone.register_buffer("input_scale", std / new_std, persistent=False)
    backbone.register_buffer("input_shift", (mean - new_mean) / new_std, persistent=False)
    backbone.register_forward_pre_hook(_renormalise)


def _renormalise(backbone: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    scale, shift = backbone.get_buffer("input_scale"), backbone.get_buffer("input_shift")
    return inputs[0] * scale + shift


def save_export(encoder: Encoder, spec: EncoderSpec) -> bytes:
    """``encoder.safetensors``: the backbone with the parameter names of its library.

    The removed classifier is stored as zeros, so that
    ``torchvision.models.resnet18().load_state_dict(state)`` accepts the file unchanged if the stem
    is torchvision's (images above 64 pixels). The metadata hold what :func:`load_exported` needs.
    """
    network = build_backbone(spec.model.backbone, spec.image_size)
    state = {k: v.detach().cpu().contiguous() for k, v in encoder.backbone.state_dict().items()}
    for key, value in network.state_dict().items():
        if key not in state:
            state[key] = torch.zeros_like(value)
    metadata = {
        "format": "pt",
        "backbone": spec.model.backbone,
        "image_size": str(spec.image_size),
        "feature_dim": str(encoder.feature_dim),
        "mean": json.dumps(spec.statistics[0]),
        "std": json.dumps(spec.statistics[1]),
    }
    return safetensors.torch.save(state, metadata=metadata)


def save_projector(encoder: Encoder, head: int = 0) -> bytes:
    """``projector.safetensors``: the projector of one head, as a ``torch.nn.Sequential``."""
    layers = encoder.projectors[head]
    assert isinstance(layers, nn.Sequential)
    widths = [m.out_features for m in layers if isinstance(m, nn.Linear)]
    metadata = {
        "format": "pt",
        "widths": json.dumps(widths),
        "norm": json.dumps(any(isinstance(m, nn.BatchNorm1d) for m in layers)),
        "feature_dim": str(encoder.feature_dim),
    }
    state = {k: v.detach().cpu().contiguous() for k, v in layers.state_dict().items()}
    return safetensors.torch.save(state, metadata=metadata)


def load_projector(content: bytes) -> nn.Sequential:
    """The inverse of :func:`save_projector`, in eval mode: (B, feature_dim) → (B, D)."""
    metadata = read_metadata(content)
    widths = tuple(json.loads(metadata["widths"]))
    norm = json.loads(metadata["norm"])
    projector = build_projector(int(metadata["feature_dim"]), widths, norm)
    projector.load_state_dict(safetensors.torch.load(content))
    return projector.eval()


def read_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; safetensors reads them from paths only.

    Raises:
        UserError: the file is damaged.
    """
    size = int.from_bytes(content[:8], "little")
    with reading("the encoder's safetensors file", "is damaged"):
        metadata: dict[str, str] = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return metadata


def load_backbone(backbone: nn.Module, content: bytes) -> None:
    """Load an exported file into a backbone without its classifier."""
    state = safetensors.torch.load(content)
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})


def statistics_of(metadata: dict[str, str]) -> Statistics:
    """Mean and standard deviation in the metadata of an exported encoder."""
    mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
    return tuple(mean), tuple(std)


def load_exported(source: bytes | str | Path) -> nn.Module:
    """The backbone of an exported file, without its classifier, in eval mode.

    Args:
        source: a path, or the file's content.

    Returns:
        A module (B, 3, s, s) float, normalised by ImageNet's statistics → (B, feature_dim), with
        attributes ``image_size`` and ``feature_dim``. (The state in the file, loaded by its own
        library, takes images normalised by the metadata's ``mean`` and ``std``.)

    Raises:
        UserError: not an export of this project.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    metadata = read_metadata(content)
    if "backbone" not in metadata:
        raise UserError("the file is not an exported encoder: its metadata name no backbone")
    image_size = int(metadata["image_size"])
    backbone = build_backbone(metadata["backbone"], image_size)
    remove_classifier(backbone, metadata["backbone"])
    load_backbone(backbone, content)
    renormalise_inputs(backbone, statistics_of(metadata))
    feature_dim = int(metadata["feature_dim"])
    backbone.image_size, backbone.feature_dim = image_size, feature_dim  # type: ignore[assignment]
    return backbone.eval()
