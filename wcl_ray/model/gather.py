"""Collect a tensor from all workers without losing its gradient.

The gradient of a contrastive loss over W workers with b images each equals that of one process
with W·b images only if the candidates of other workers pass gradients back: the backward of the
gather must add up (not average, not cut out) what every worker's loss says about a tensor.
DistributedDataParallel then averages over workers, and a loss that is the mean over local anchors
comes out as the mean over all anchors.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate equally shaped tensors of all workers along the first dimension.

    Args:
        x: (b, …) of this worker.

    Returns:
        (W·b, …) in order of rank; ``x`` itself without a process group. Differentiable for
        floating point tensors, the gradients of all workers are summed.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    if x.requires_grad:
        return torch.cat(all_gather(x.contiguous()))
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
