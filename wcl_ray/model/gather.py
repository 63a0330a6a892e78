"""Makes the gradient of W workers with b images each equal that of one process with W·b images.

Candidates from other workers must pass gradients back: the backward of the gather sums (not
averages, not drops) the gradients that the losses of all workers have for a tensor.
DistributedDataParallel then averages over workers, so that the local parts of a loss (see
:class:`wcl_ray.model.loss.LossResult`) become the mean over all valid anchors.

Batch norm must see the global batch, too. On GPUs :func:`synchronised` sees to it. On CPUs torch
has no synchronised batch norm: each worker normalises by its own b images, and the gradient is that
of one process only for networks without batch norm (ConvNeXt, ViT, Swin). Dropout and stochastic
depth draw different masks on each worker; with them it is equal in distribution only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_gather

M = TypeVar("M", bound=nn.Module)


def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate equally shaped tensors of all workers along the first dimension.

    Args:
        x: (b, …) of this worker.

    Returns:
        (W·b, …) in order of rank; ``x`` itself without a process group. Differentiable for
        floating-point tensors: the gradients of all workers are summed.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    if x.requires_grad:
        return torch.cat(all_gather(x.contiguous()))
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def synchronised(model: M, device: torch.device, world: int, wanted: bool) -> M:
    """The model with batch norm over all workers; unchanged on one worker, on CPUs or if unwanted.

    Parameters and buffers keep their names, so that checkpoints fit either model. Call it before
    the model is compiled or wrapped.
    """
    if not wanted or world == 1 or device.type != "cuda":
        return model
    convert: Callable[[M], M] = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        from timm.layers import convert_sync_batchnorm

        convert = convert_sync_batchnorm  # torch's version drops the activations in timm's layers
    return convert(model)
