"""Weights to start from: those a library publishes, a file in a usual naming, or a run."""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from wcl_ray.config import SMALL
from wcl_ray.data.augment import MEAN, STD
from wcl_ray.errors import UserError
from wcl_ray.model.architectures import architecture, nearest_architecture
from wcl_ray.model.encoder import (
    IMAGENET,
    EncoderSpec,
    Statistics,
    build_backbone,
    read_metadata,
    statistics_of,
)
from wcl_ray.model.fit_state import Fit, State, fit_state

NESTED = ("state_dict", "model_state_dict", "model", "teacher", "student", "net", "encoder")
FILES = "a .safetensors file, a state_dict that torch.save wrote (.pth, .pt), or a finished run"
EXPORTED = {"backbone", "image_size", "mean", "std"}  # metadata of an export


@dataclass(frozen=True)
class Weights:
    """Weights as they were found.

    Attributes:
        source: what they are, for people.
        state: name → tensor.
        statistics: the normalisation for which they were trained.
        image_size: side of the images on which they were trained, in pixels.
    """

    source: str
    state: State = field(repr=False)
    statistics: Statistics = IMAGENET
    image_size: int = 224


def published_weights(name: str) -> Weights:
    """The weights that the library of a backbone publishes for it, from its cache or downloaded.

    Args:
        name: a value of ``model.backbone``.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    try:
        network = build_backbone(name, 224, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # each library, and what it downloads with, raises its own
        why = " ".join(str(error).split())[:150] or type(error).__name__
        raise UserError(
            f"model.weights pretrained: the weights of {name} cannot be downloaded ({why}); give "
            "--model.weights a file"
        ) from None
    statistics, size = expected_images(network)
    return Weights(f"published weights of {name}", network.state_dict(), statistics, size)


def expected_images(network: nn.Module) -> tuple[Statistics, int]:
    """Normalisation and side of the images for which a network's published weights are made;
    ImageNet's and the default side of images if none are published."""
    described: dict[str, Any] | None = getattr(network, "pretrained_cfg", None)
    if described is None:
        return IMAGENET, SMALL
    mean, std = described.get("mean", MEAN), described.get("std", STD)
    return (tuple(mean), tuple(std)), described.get("input_size", (3, 224, 224))[1]


def file_weights(content: bytes, name: str, backbone: str) -> Weights:
    """Weights of a file: an export of this project, or one in a usual naming, for which the images
    are those of the backbone's published weights.

    Args:
        name: of the file. backbone: a value of ``model.backbone``.

    Raises:
        UserError: the file holds no weights, or is the export of another backbone.
    """
    state, metadata, part = read_state(content, name)
    exported = metadata.get("backbone", backbone)
    if architecture(exported) != architecture(backbone):
        raise UserError(f"model.weights {name} holds a {exported}; use --model.backbone {exported}")
    if not metadata.keys() >= EXPORTED:
        source = f"{name} ({part})" if part else name
        return Weights(source, state, *expected_images(build_backbone(backbone, 224)))
    return Weights(name, state, statistics_of(metadata), int(metadata["image_size"]))


def start_encoder(spec: EncoderSpec, weights: Weights, seed: int) -> tuple[EncoderSpec, bytes, Fit]:
    """An encoder that has the weights.

    Args:
        seed: of the values that the weights lack.

    Returns:
        What it is built from, the normalisation of the weights included; its export; and how the
        weights fit.

    Raises:
        UserError: they do not fit, with the nearest architecture.
    """
    spec = replace(spec, statistics=weights.statistics)
    torch.manual_seed(seed)
    encoder = spec.build()
    try:
        fit = fit_state(weights.state, encoder.backbone)
    except UserError as error:
        name = spec.model.backbone
        nearest = nearest_architecture(weights.state, name)
        other = nearest not in (None, architecture(name))
        hint = f"; use --model.backbone {nearest}" if other else ""
        raise UserError(
            f"model.weights {weights.source} does not fit {name} for images of {spec.image_size} "
            f"pixels: {error}{hint}"
        ) from None
    encoder.backbone.load_state_dict(fit.state)
    return spec, spec.export(encoder), fit


def read_state(content: bytes, name: str) -> tuple[State, dict[str, str], str]:
    """Tensors of a ``.safetensors`` or of a file of ``torch.save``, the metadata of the first, and
    where the second has the tensors.

    A dictionary inside a checkpoint (``state_dict``, ``model``, …) is taken out of it; of DINO's
    ``student`` and ``teacher`` the teacher.

    Args:
        name: of the file, for errors.

    Raises:
        UserError: it is neither, or holds no tensors.
    """
    if name.endswith(".safetensors"):
        try:
            state = safetensors.torch.load(content)
        except SafetensorError as error:
            raise UserError(
                f"model.weights {name} is not a safetensors file ({error}); give {FILES}"
            ) from None
        return state, read_metadata(content), ""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # many keep their options
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of any type, for bytes that are no file of torch
        why = " ".join(str(error).partition("\n")[0].split())[:150]
        why = f" ({why})" if " " in why else ""  # a key or an index says nothing
        raise UserError(
            f"model.weights {name} is not a file of weights{why}; give {FILES}"
        ) from None
    state, part = _tensors(loaded, name)
    return state, {}, part


def _tensors(loaded: Any, name: str) -> tuple[State, str]:
    """The tensors, and the keys of the dictionaries around them."""
    keys: list[str] = []
    while isinstance(loaded, dict):
        tensors = {
            k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, torch.Tensor)
        }
        inner = next((key for key in NESTED if isinstance(loaded.get(key), dict)), None)
        if tensors and (inner is None or len(tensors) > 1):
            return tensors, ".".join(keys)
        if inner is None:
            break
        keys.append(inner)
        loaded = loaded[inner]
    raise UserError(f"model.weights {name} holds no tensors; save the state_dict of the network")
