"""Metrics of a worker, averaged over steps and workers without a stop of the device in between."""

from __future__ import annotations

import torch
import torch.distributed as dist

from wcl_ray.model.loss import LossResult

NAMES = ("loss", "positives", "anchors_without_positive", "grad_norm")


class MetricAverager:
    """Sums on the device; one exchange between the workers reads them all."""

    def __init__(self, device: torch.device, world: int) -> None:
        self._sums = torch.zeros(len(NAMES), device=device)
        self._steps, self._world = 0, world

    def add(self, result: LossResult, norm: torch.Tensor) -> None:
        self._sums += torch.stack(
            [result.loss.detach(), result.positives, result.without_positive, norm.detach()]
        )
        self._steps += 1

    def exchange(self, *others: float) -> tuple[dict[str, float] | None, list[float]]:
        """Means since the last call (None without a step), and each other number summed over the
        workers. Every worker has to call it at the same step."""
        extra = torch.tensor(others, device=self._sums.device)
        values = torch.cat([self._sums, extra])
        if self._world > 1:
            dist.all_reduce(values)
        sums, rest = values[: len(NAMES)].tolist(), values[len(NAMES) :].tolist()
        steps, self._steps = self._steps * self._world, 0
        self._sums.zero_()
        if not steps:
            return None, rest
        return {name: total / steps for name, total in zip(NAMES, sums, strict=True)}, rest
