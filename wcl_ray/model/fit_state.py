"""Puts the weights of a file under the names of a backbone, whatever naming they come in."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn

from wcl_ray.errors import UserError
from wcl_ray.model.huggingface import renamed_weights

State = dict[str, torch.Tensor]
# parts of prefixes; of two networks in a file, the one that its method evaluates is taken
PREFERRED, SECOND = ("teacher",), ("student", "encoder_k", "momentum", "target")
HEADS = ("head", "heads", "fc", "classifier")  # of the libraries; they are not used
FINAL = (*HEADS, "norm", "fc_norm")  # what may follow the last block; a file may lack it
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")  # not trained
MOST_NAMED = 5  # names in a message


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
        (without_prefix(names, wanted) for names in (state, renamed_weights(state))),
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


def without_prefix(state: State, wanted: State) -> tuple[State, str]:
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
