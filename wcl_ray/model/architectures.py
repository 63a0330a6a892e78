"""Finds the architecture that weights belong to, for the error when they do not fit."""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from wcl_ray.errors import UserError
from wcl_ray.model.encoder import build_backbone
from wcl_ray.model.fit_state import State, without_prefix
from wcl_ray.model.huggingface import renamed_weights


def architecture(name: str) -> str:
    """A value of ``model.backbone`` without the tag of its published weights
    (``timm:vit_small_patch16_224.dino``)."""
    return name.partition(".")[0]


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
        for names in (without_prefix(state, wanted)[0], wanted)
    )
    return len(ours & theirs) / len(ours | theirs)


def _share(state: State, wanted: State) -> float:
    """Share of the weights whose names and shapes agree."""
    named, prefix = without_prefix(state, wanted)
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
