"""Progress of the training, and its metrics averaged over steps and workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist


@dataclass
class Progress:
    """Progress of the training, for the learning rate, the live line and the time left.

    Only images that enter a step count, not those of a last, incomplete batch or unreadable ones:
    the last of S equal steps begins at a share of (S - 1) / S. After a restart within an epoch, for
    any number of workers, the share does not fall below that of the last step before it.

    Attributes:
        epochs: number of epochs of the training.
        epoch: the current one, from 0.
        done: images of this epoch that entered a step, including those before a restart.
        left: images of this epoch that are still to enter one.
    """

    epochs: int
    epoch: int
    done: int
    left: int

    def add(self, batch: int) -> None:
        """Count a step."""
        self.done += batch
        self.left -= batch

    @property
    def of_epoch(self) -> float:
        """Share of this epoch that is done, in [0, 1]."""
        return self.done / max(1, self.done + self.left)

    @property
    def share(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return (self.epoch + self.of_epoch) / self.epochs

    @property
    def images_left(self) -> int:
        """Images left in all epochs, assuming that they are all like this one."""
        return self.left + (self.epochs - self.epoch - 1) * (self.done + self.left)


class StepMetrics(NamedTuple):
    """Metrics of one step on one worker: float32 scalars on the device. Their means over the
    workers are those of the global batch (see :class:`wcl_ray.model.loss.LossResult`).

    Attributes:
        loss: in nats.
        positives: other images of the anchor's cluster in the batch (first granularity).
        anchors_without_positive: share of anchors without any.
        grad_norm: norm of all gradients before clipping; the same on all workers.
    """

    loss: torch.Tensor
    positives: torch.Tensor
    anchors_without_positive: torch.Tensor
    grad_norm: torch.Tensor


class MetricAverager:
    """Means of the metrics over steps and workers. Sums stay on the device, which is synchronised
    only when the workers exchange them."""

    def __init__(self, device: torch.device, world: int) -> None:
        self._sums = torch.zeros(len(StepMetrics._fields), device=device)
        self._steps, self._world = 0, world

    def add(self, metrics: StepMetrics) -> None:
        """Add the metrics of a step without copying them from the device."""
        self._sums += torch.stack(metrics)
        self._steps += 1

    def exchange(self, *others: float) -> tuple[dict[str, float] | None, list[float]]:
        """Means since the last call (None without a step), and the sums of other numbers over the
        workers. All workers must call it at the same step."""
        names = StepMetrics._fields
        extra = torch.tensor(others, device=self._sums.device)
        values = torch.cat([self._sums, extra])
        if self._world > 1:
            dist.all_reduce(values)
        sums, rest = values[: len(names)].tolist(), values[len(names) :].tolist()
        steps, self._steps = self._steps * self._world, 0
        self._sums.zero_()
        if not steps:
            return None, rest
        return {name: total / steps for name, total in zip(names, sums, strict=True)}, rest
