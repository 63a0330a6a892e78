"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wcl_ray.config import TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.model.layers import layer_numbers


def learning_rate(share: float, train: TrainConfig) -> float:
    """Learning rate after a share of the training: linear warm-up, then a cosine to zero.

    Args:
        share: of the training, in [0, 1].

    >>> from wcl_ray.config import TrainConfig
    >>> [round(learning_rate(share, TrainConfig(lr=1.0)), 3) for share in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if share < train.warmup:
        # not zero: the first step would be lost
        return train.lr * max(share / train.warmup, 1e-2)
    rest = (share - train.warmup) / (1 - train.warmup)
    return train.lr * 0.5 * (1 + math.cos(math.pi * rest))


def clip_gradients(model: nn.Module, clip: float) -> torch.Tensor:
    """Scale gradients down so that their norm is at most ``clip``.

    Args:
        clip: largest norm; 0 leaves the gradients as they are.

    Returns:
        The norm before scaling, a scalar on the device.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if clip:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    return norm


# weights of torchvision's networks that have two or three dimensions and yet no weight decay
UNDECAYED = ("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale")


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that get no weight decay: those of one dimension (biases,
    normalisation), class tokens, position embeddings and layer scales; of timm's networks what
    they say themselves (``no_weight_decay``)."""
    backbone = getattr(model, "backbone", None)
    own: set[str] = set(getattr(backbone, "no_weight_decay", set)())
    return {f"backbone.{name}" for name in own} | {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.rpartition(".")[2] in UNDECAYED
    }


def build_optimizer(model: nn.Module, train: TrainConfig) -> Optimizer:
    """The optimiser for a model; what :func:`undecayed` names gets no weight decay.

    With ``layer_decay`` the groups have an ``lr_scale``: the last stage of the backbone learns
    with layer_decay times the rate of the projectors, the stage before it with layer_decay² times,
    and so on (Bao et al., "BEiT", ICLR 2022).

    Args:
        model: an :class:`wcl_ray.model.encoder.Encoder`, or any module if ``layer_decay`` is 1.
    """
    layers: dict[str, int] = {}
    if train.layer_decay < 1:
        layers = {f"backbone.{k}": n for k, n in layer_numbers(model.backbone).items()}  # type: ignore[arg-type]
    top = max(layers.values(), default=0) + 1
    exempt = undecayed(model)
    by_kind: dict[tuple[bool, int], list[nn.Parameter]] = {}
    formerly: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = top - layers.get(name, top)
            by_kind.setdefault((name in exempt, depth), []).append(parameter)
            formerly.setdefault((parameter.ndim <= 1, depth), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": by_kind[kind],
            "weight_decay": 0.0 if kind[0] else train.weight_decay,
            "lr_scale": train.layer_decay ** kind[1],
            "adapts": not kind[0],
        }
        for kind in sorted(by_kind)
    ]
    optimizer = _optimizer(groups, train)
    order = [formerly[kind] for kind in sorted(formerly)]
    optimizer.register_load_state_dict_pre_hook(partial(_regroup, order))
    return optimizer


def _optimizer(groups: list[dict[str, Any]], train: TrainConfig) -> Optimizer:
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=0.9, nesterov=True)
    return LARS(groups, lr=train.lr)


def _regroup(
    formerly: list[list[nn.Parameter]], optimizer: Optimizer, state: dict[str, Any]
) -> dict[str, Any] | None:
    """The state in today's groups; up to version 0.2 weight decay spared nothing but parameters of
    one dimension, and the state goes by their order.

    Raises:
        UserError: the state has other groups still.
    """
    saved, groups = state["param_groups"], optimizer.param_groups
    sizes = [len(group["params"]) for group in saved]
    if sizes == [len(group["params"]) for group in groups]:
        return None
    if sizes != [len(parameters) for parameters in formerly]:
        raise UserError(
            "the optimiser in the checkpoint has other groups of weights: stages of this backbone "
            "were counted in another way, or options were changed; use another --name"
        )
    numbers = [number for group in saved for number in group["params"]]
    parameters = [id(parameter) for group in formerly for parameter in group]
    number_of = dict(zip(parameters, numbers, strict=True))
    kept = ("weight_decay", "lr_scale", "adapts")
    regrouped = [
        saved[0]
        | {key: group[key] for key in kept}
        | {"params": [number_of[id(parameter)] for parameter in group["params"]]}
        for group in groups
    ]
    return state | {"param_groups": regrouped}


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., "Large Batch Training of Convolutional
    Networks", 2017, algorithm 1), as used by SimCLR.

    For a weight matrix w with gradient g: ``g += decay·w``; the step is scaled by
    ``trust·‖w‖ / ‖g‖``; momentum runs over the scaled gradients. One-dimensional parameters
    (biases, normalisation) and groups whose ``adapts`` is False take a plain momentum step.

    Args:
        trust: trust coefficient η.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group)
        return loss

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        grad = p.grad
        if p.ndim > 1 and group.get("adapts", True):  # checkpoints of version 0.2 do not have it
            grad = grad.add(p, alpha=group["weight_decay"])
            p_norm, grad_norm = p.norm(), grad.norm()
            scale = group["trust"] * p_norm / grad_norm
            nonzero = (p_norm > 0) & (grad_norm > 0)
            grad = grad * torch.where(nonzero, scale, torch.ones_like(scale))
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(group["momentum"]).add_(grad)
        p.add_(state["momentum"], alpha=-group["lr"])
