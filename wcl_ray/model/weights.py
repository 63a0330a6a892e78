"""Weights to start from: those a library publishes, a file in a usual naming, or a run."""

from __future__ import annotations

import difflib
import io
import json
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from wcl_ray.errors import UserError
from wcl_ray.model.encoder import build_backbone
from wcl_ray.model.huggingface import renamed_weights

State = dict[str, torch.Tensor]
NESTED = ("state_dict", "model_state_dict", "model", "student", "teacher", "net", "encoder")
MOST_NAMED = 5  # names in a message


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights of a backbone under the names of its own library.

    Attributes:
        state: name → tensor, of all weights of the backbone without its classifier.
        missing: names that the source lacks; they keep their random values.
        unexpected: names of the source that the backbone lacks, its classifier left aside.
        mean, std: of the normalisation they were trained with, per channel; None: not known.
    """

    state: State
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_state(content: bytes, name: str) -> tuple[State, dict[str, str]]:
    """Tensors of a ``.safetensors`` or of a file of ``torch.save``, and the metadata of the first.

    A dictionary inside a checkpoint (``state_dict``, ``model``, …) is taken out of it.

    Args:
        name: of the file, for errors.

    Raises:
        UserError: it is neither, or holds no tensors.
    """
    if name.endswith(".safetensors"):
        try:
            state = safetensors.torch.load(content)
        except SafetensorError as error:
            raise UserError(f"model.weights {name} is not a safetensors file: {error}") from None
        size = int.from_bytes(content[:8], "little")
        return state, json.loads(content[8 : 8 + size]).get("__metadata__", {})
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        why = str(error).splitlines()[0][:150]
        raise UserError(
            f"model.weights {name} is not a file of weights ({why}); save a state_dict with "
            "torch.save or as .safetensors"
        ) from None
    return _tensors(loaded, name), {}


def _tensors(loaded: Any, name: str) -> State:
    while isinstance(loaded, dict):
        tensors = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
        inner = next((loaded[k] for k in NESTED if isinstance(loaded.get(k), dict)), None)
        if tensors and (inner is None or len(tensors) > 1):
            return tensors
        loaded = inner
    raise UserError(f"model.weights {name} holds no tensors; save the state_dict of the network")


def fit_state(state: State, backbone: nn.Module, classifier: Iterable[str]) -> PretrainedWeights:
    """The weights of a file under the names of the backbone, position embeddings resized.

    Prefixes such as ``module.`` or ``backbone.`` are taken off, names of Hugging Face's
    transformers become those of timm or torchvision.

    Args:
        backbone: without its classifier.
        classifier: names of the classifier that was taken off; they are not missed.

    Raises:
        UserError: fewer than half of the names fit, or a tensor has another shape.
    """
    wanted = backbone.state_dict()
    named = max(
        (_without_prefix(names, wanted) for names in (state, renamed_weights(state))),
        key=lambda names: len(names.keys() & wanted.keys()),
    )
    named = _library_names(named, backbone)
    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = tuple(name for name in counted if name not in named)
    if 2 * len(missing) > len(counted):
        raise UserError(
            f"only {len(counted) - len(missing)} of the network's {len(counted)} weights are in "
            f"it; it has {_some(state)}, the network {_some(wanted)}"
        )
    wrong = [n for n in counted if n in named and named[n].shape != wanted[n].shape]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{first} has shape {tuple(named[first].shape)} in it, {tuple(wanted[first].shape)} in "
            f"the network ({len(wrong)} of {len(counted)} weights differ)"
        )
    heads = tuple({name.partition(".")[0] for name in classifier} | {"head", "fc", "classifier"})
    unexpected = tuple(
        name for name in named if name not in wanted and name.partition(".")[0] not in heads
    )
    chosen = {name: named[name].to(wanted[name].dtype) for name in wanted if name in named}
    return PretrainedWeights(wanted | chosen, missing, unexpected)


def _without_prefix(state: State, wanted: State) -> State:
    """The names without the prefix under which most of the wanted ones are."""
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
        return state
    most = max(prefixes.values())
    prefix = min((p for p, count in prefixes.items() if count == most), key=len)
    return {name.removeprefix(prefix): value for name, value in state.items()}


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


def _some(state: State) -> str:
    names = list(state)[:MOST_NAMED]
    return ", ".join(names) + (", …" if len(state) > len(names) else "")


def nearest_architecture(state: State, name: str) -> str | None:
    """The network of torchvision, or a near name of timm, that most weights of a file fit.

    Args:
        name: the network that they do not fit; near names of timm are tried.

    Returns:
        A value of ``model.backbone``, or None when fewer than 90 % fit each.
    """
    states = [state, renamed_weights(state)]
    best, highest = None, 0.9
    for candidate in _candidates(name):
        try:
            with torch.device("meta"):
                wanted = build_backbone(candidate, 224).state_dict()
        except (NotImplementedError, UserError):  # it needs values, or images of another size
            continue
        named = [_without_prefix(names, wanted) for names in states]
        fitting = max(
            sum(names[key].shape == wanted[key].shape for key in names.keys() & wanted.keys())
            for names in named
        )
        share = fitting / max(len(wanted), len(state))
        if share > highest:
            best, highest = candidate, share
    return best


def _candidates(name: str) -> list[str]:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    try:
        import timm
    except ImportError:
        return known
    near = difflib.get_close_matches(name.rpartition(":")[2], timm.list_models(), 20, 0.3)
    return [*known, *(f"timm:{model}" for model in near)]
