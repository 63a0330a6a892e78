"""Weights to start from: those a library publishes, a file in a usual naming, or a run."""

from __future__ import annotations

import argparse
import difflib
import io
import re
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.overrides import TorchFunctionMode

from wcl_ray.config import SMALL
from wcl_ray.data.augment import MEAN, STD
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import (
    IMAGENET,
    EncoderSpec,
    Statistics,
    build_backbone,
    read_metadata,
    statistics_of,
)
from wcl_ray.model.huggingface import renamed_weights

State = dict[str, torch.Tensor]
NESTED = ("state_dict", "model_state_dict", "model", "teacher", "student", "net", "encoder")
# parts of prefixes; of two networks in a file, the one that its method evaluates is taken
PREFERRED, SECOND = ("teacher",), ("student", "encoder_k", "momentum", "target")
HEADS = ("head", "heads", "fc", "classifier")  # of the libraries; they are not used
FINAL = (*HEADS, "norm", "fc_norm")  # what may follow the last block; a file may lack it
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")  # not trained
FILES = "a .safetensors file, a state_dict that torch.save wrote (.pth, .pt), or a finished run"
MOST_NAMED = 5  # names in a message
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


@dataclass(frozen=True)
class Fit:
    """Weights under the names of a backbone.

    Attributes:
        state: all weights of the backbone without its classifier.
        loaded: number of weights that come from the source.
        missing: names that the source lacks; they keep their random values.
        unexpected: names of the source that the backbone lacks, apart from its classifier.
        prefix: what came before these names in the source, such as ``module.``.
    """

    state: State = field(repr=False)
    loaded: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    prefix: str = ""


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


def architecture(name: str) -> str:
    """A value of ``model.backbone`` without the tag of its published weights
    (``timm:vit_small_patch16_224.dino``)."""
    return name.partition(".")[0]


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


def fit_state(state: State, backbone: nn.Module) -> Fit:
    """Weights under the names of a backbone without its classifier, position embeddings resized.

    Prefixes such as ``module.`` or ``backbone.`` are taken off, names of Hugging Face's
    transformers become those of timm or torchvision.

    Every weight of the backbone must be in the source, except what follows its last block (a norm
    or the layers of a classifier: :data:`FINAL`) and what the network computes (counters, indices).
    The source may have more: a classifier, a projector, a pooler, a mask token, a second network,
    a queue; but no block, that is, no name that begins as one of the backbone's up to a number
    (``layer1.``, ``blocks.11.``, whatever the number).

    Raises:
        UserError: weights are missing, blocks are left over, or a tensor has another shape.
    """
    wanted = backbone.state_dict()
    named, prefix = max(
        (_without_prefix(names, wanted) for names in (state, renamed_weights(state))),
        key=lambda pair: len(pair[0].keys() & wanted.keys()),
    )
    named = _library_names(named, backbone)
    counted = [name for name in wanted if not name.endswith(COMPUTED)]
    missing = tuple(name for name in counted if name not in named)
    lacking = [name for name in missing if name.partition(".")[0] not in FINAL]
    if 2 * len(lacking) > len(counted):
        raise UserError(
            f"only {len(counted) - len(missing)} of the network's {len(counted)} weights are in "
            f"it; it has {listed(state)}, the network {listed(wanted)}"
        )
    if lacking:
        raise UserError(
            f"{len(lacking)} of the network's {len(counted)} weights are not in it "
            f"({listed(lacking)})"
        )
    unexpected = tuple(
        name for name in named if name not in wanted and name.partition(".")[0] not in HEADS
    )
    blocks = {_block(name) for name in counted}
    excess = [n for n in unexpected if not n.endswith(COMPUTED) and _block(n) in blocks - {""}]
    if excess:
        raise UserError(
            f"{len(excess)} of its weights are of blocks that the network lacks ({listed(excess)})"
        )
    wrong = [n for n in counted if n in named and named[n].shape != wanted[n].shape]
    if wrong:
        first = wrong[0]
        text = (
            f"{first} has shape {tuple(named[first].shape)} in it, {tuple(wanted[first].shape)} in "
            f"the network ({len(wrong)} of {len(counted)} weights differ)"
        )
        if wrong == ["conv1.weight"]:
            text += _stem_hint(named[first], backbone)
        raise UserError(text)
    chosen = {name: named[name].to(wanted[name].dtype) for name in wanted if name in named}
    return Fit(wanted | chosen, len(counted) - len(missing), missing, unexpected, prefix)


def _block(name: str) -> str:
    """The beginning of a name up to its first number, which becomes #; nothing if it has none."""
    match = re.match(r"\D*(?=\d)", name)
    return f"{match[0]}#" if match else ""


def _stem_hint(stem: torch.Tensor, backbone: nn.Module) -> str:
    """The remedy if weights are those of a ResNet with the stem of other image sizes."""
    from torchvision.models.resnet import ResNet  # a second of start-up for whoever imports it

    from wcl_ray.model.backbones.torchvision import SMALL_IMAGE

    if not isinstance(backbone, ResNet):
        return ""
    side = "above" if stem.shape[-1] > backbone.conv1.weight.shape[-1] else "of at most"
    return f"; only the stem differs: use a --data.image-size {side} {SMALL_IMAGE}"


def _without_prefix(state: State, wanted: State) -> tuple[State, str]:
    """The names without the prefix under which most of the wanted ones are, and this prefix.

    Of two networks in a file the one is taken that its method evaluates: DINO's teacher, MoCo's
    ``encoder_q``.
    """
    prefixes: Counter[str] = Counter()
    by_end: dict[str, list[str]] = {}
    for name in wanted:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    for name in state:
        ends = by_end.get(name.rpartition(".")[2], ())
        for prefix in {name[: -len(end)] for end in ends if name.endswith(end)}:
            if not prefix or prefix.endswith("."):
                prefixes[prefix] += 1
    if not prefixes:
        return state, ""
    most = max(prefixes.values())
    prefix = min((p for p, count in prefixes.items() if count == most), key=_preference)
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def _preference(prefix: str) -> tuple[int, int]:
    """Prefixes in the order in which they are preferred."""
    first, second = (any(part in prefix for part in parts) for parts in (PREFERRED, SECOND))
    return second - first, len(prefix)


def _library_names(state: State, backbone: nn.Module) -> State:
    """What the backbone's own library does to weights that it loads: older names, and position
    embeddings of another image size."""
    module = sys.modules[type(backbone).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)  # timm's
    if convert is not None:
        return dict(convert(state, backbone))
    positions, key = backbone.state_dict(), "encoder.pos_embedding"
    if key in state and key in positions and state[key].shape != positions[key].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        size, patch = backbone.image_size, backbone.patch_size
        return dict(interpolate_embeddings(size, patch, dict(state)))  # type: ignore[arg-type]
    return state


def listed(names: Collection[str]) -> str:
    """The first names, for a message."""
    return ", ".join(list(names)[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


class _WithoutValues(TorchFunctionMode):
    """Parameters get no memory, while a network can compute its sizes (as RegNets do)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def nearest_architecture(state: State, name: str) -> str | None:
    """The network of torchvision, or a near name of timm, that most weights of a file fit.

    The given network comes first. Of each family one network is built; the others only if at least
    half of its names, apart from their numbers, are those of the file.

    Args:
        name: the network that they do not fit; near names of timm are tried.

    Returns:
        A value of ``model.backbone``, which is ``name`` itself if no other fits better; None when
        fewer than 90 % fit each.
    """
    states = [state, renamed_weights(state)]
    best, highest = None, 0.9
    for first, *others in [[architecture(name)], *_families(name)]:
        wanted = _shapes_of(first)
        if wanted is None or max(_common_patterns(names, wanted) for names in states) < 0.5:
            continue
        for candidate in (first, *others):
            wanted = wanted if candidate == first else _shapes_of(candidate)
            share = 0.0 if wanted is None else max(_share(names, wanted) for names in states)
            if share == 1:
                return candidate
            if share > highest:
                best, highest = candidate, share
    return best


def _shapes_of(name: str) -> State | None:
    """The weights of a network, without values; None if it takes no images of this size."""
    try:
        with _WithoutValues():
            return build_backbone(name, 224).state_dict()
    except (RuntimeError, UserError):  # the first: it needs values
        return None


def _common_patterns(state: State, wanted: State) -> float:
    """Share of the names without their numbers that both have, of those of either."""
    ours, theirs = (
        {re.sub(r"\d+", "#", name) for name in names}
        for names in (_without_prefix(state, wanted)[0], wanted)
    )
    return len(ours & theirs) / len(ours | theirs)


def _share(state: State, wanted: State) -> float:
    """Share of the weights whose names and shapes agree."""
    named, prefix = _without_prefix(state, wanted)
    fitting = sum(named[key].shape == wanted[key].shape for key in named.keys() & wanted.keys())
    beside = sum(name.startswith(prefix) for name in state)  # a second network does not count
    return fitting / max(len(wanted), beside)


def _near_names(name: str, names: list[str]) -> list[str]:
    """Names of several words that differ in one, such as the size, then those of like letters.

    >>> _near_names("vit_small_16", ["vit_tiny_16", "vit_tiny_32", "vit_small_32"])
    ['vit_tiny_16', 'vit_small_32', 'vit_tiny_32']
    """
    words = name.split("_")
    of_words = [
        other
        for other in names
        if len(other.split("_")) == len(words) > 1
        and sum(a != b for a, b in zip(words, other.split("_"), strict=True)) == 1
    ]
    return list(dict.fromkeys([*of_words, *difflib.get_close_matches(name, names, 20, 0.3)]))


def _families(name: str) -> list[list[str]]:
    """The networks of torchvision and near names of timm, by the module that defines them."""
    import torchvision.models

    families: dict[str, list[str]] = {}
    for model in torchvision.models.list_models(module=torchvision.models):
        module = torchvision.models.get_model_builder(model).__module__
        families.setdefault(module, []).append(model)
    try:
        import timm
    except ImportError:
        return list(families.values())
    for model in _near_names(architecture(name).rpartition(":")[2], timm.list_models()):
        families.setdefault(timm.model_entrypoint(model).__module__, []).append(f"timm:{model}")
    return list(families.values())
