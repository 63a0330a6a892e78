"""Contrastive batches larger than the memory for activations.

Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", 2021, section 3): all embeddings are computed without keeping activations, the loss of the
whole batch gives the gradient of each embedding, and with these gradients one micro-batch after the
other is run again and backward. Unlike accumulated gradients, all images of the batch are
contrasted with each other. Here each micro-batch is a checkpoint of torch's, which restores the
random state (dropout, stochastic depth) and autocast for the second pass, and leaves one backward
pass to the caller, at whose end DistributedDataParallel reduces the gradients once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from wcl_ray.errors import UserError

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


class MicroBatches(nn.Module):
    """Runs an encoder on micro-batches of equal size, up to one image, and keeps their inputs and
    outputs only; the backward pass runs the encoder a second time.

    The result and the gradient are those of the whole batch, unless the encoder has batch norm in
    training mode: that normalises each micro-batch by its own statistics, as with accumulated
    gradients, and updates its running statistics once for each, in the first pass.

    Args:
        module: an encoder, see :meth:`wcl_ray.model.encoder.Encoder.forward`, perhaps compiled
            (with ``dynamic=False``: both passes must take the same graph).
        size: largest number of images of a micro-batch, with two views each.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size
        self._norms = [m for m in module.modules() if isinstance(m, _NormBase)]

    def forward(self, views_2bchw: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the encoder for all images, of two rows (both views) or one row per image.

        Raises:
            UserError: a method has an output of another length.
        """
        images = len(views_2bchw) // 2
        count = -(-images // self.size)
        if count <= 1:
            outputs: tuple[Tensor, ...] = self.module(views_2bchw, *inputs)
            return outputs
        columns = [x.tensor_split(count) for x in (*views_2bchw.chunk(2), *inputs)]
        sizes = [len(x) for x in columns[0]]
        parts = [
            checkpoint(self._run, *part, use_reentrant=False, context_fn=self._contexts)
            for part in zip(*columns, strict=True)
        ]
        return tuple(join(output, sizes) for output in zip(*parts, strict=True))

    def _run(self, view1: Tensor, view2: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.module(torch.cat([view1, view2]), *inputs)
        return outputs

    def _contexts(self) -> Contexts:
        return nullcontext(), self._statistics_kept()

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Undo the updates of running statistics in the second pass. (To switch them off would save
        other tensors than the first pass, and compile the encoder again.)"""
        statistics = [(b, b.clone()) for norm in self._norms for b in norm.buffers(recurse=False)]
        try:
            yield
        finally:  # checkpoints leave by an exception as soon as they have all activations
            for buffer, value in statistics:
                buffer.copy_(value)


def join(parts: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    """One output of all micro-batches of n images: (2n, …), view 1 of each image, then view 2,
    → (2b, …), or (n, …) → (b, …)."""
    lengths = [len(part) for part in parts]
    if lengths == sizes:
        return torch.cat(parts)
    if lengths != [2 * size for size in sizes]:
        raise UserError(
            f"the method gives {lengths[0]} rows for {sizes[0]} images; with "
            "train.micro-batch-size it needs one row for each image or for each view"
        )
    views = [part.chunk(2) for part in parts]
    return torch.cat([view1 for view1, _ in views] + [view2 for _, view2 in views])
