"""Steps of a training worker, without Ray: what dropout draws on each worker and at each step."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray.train
import torch
from torch import nn

import wcl_ray.train.step
import wcl_ray.train.worker
from wcl_ray.config import Config, DataConfig, TrainConfig
from wcl_ray.data import sampler
from wcl_ray.data.reader import Batch
from wcl_ray.train.averager import MetricAverager
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.step import Progress
from wcl_ray.train.worker import Worker

B, SIZE = 6, 8
Draw = Callable[[int, int, int], list[torch.Tensor]]


class Dropping(nn.Module):
    """An encoder with dropout that keeps the masks it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 16)
        self.masks: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        z = self.linear(x.flatten(1))
        self.masks.append(nn.functional.dropout(torch.ones_like(z), training=self.training))
        return (z * self.masks[-1],)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """(rank of one of two workers, first step, steps) → the masks of those steps."""
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(wcl_ray.train.worker, "build_encoder", lambda *_: Dropping())
    # the other worker is given the same images
    monkeypatch.setattr(wcl_ray.train.step, "gather", lambda x: torch.cat([x, x]))

    def masks(rank: int, start: int, steps: int) -> list[torch.Tensor]:
        config = Config(
            data=DataConfig(image_size=SIZE), train=TrainConfig(batch_size=2 * B, clip=1.0)
        )
        worker = Worker.__new__(Worker)
        worker.task = SimpleNamespace(fingerprint="", start=None, audit=None)  # type: ignore[assignment]
        worker.config, worker.rank, worker.world = config, rank, 1
        worker.device, worker.batch = torch.device("cpu"), 2 * B
        torch.manual_seed(config.seed)
        worker._build()
        worker.position = TrainState(step=start, images=start * 2 * B)
        worker.progress = Progress(1, 0, 0, 10 * 2 * B)
        worker.meter, worker.counted = MetricAverager(worker.device, 1), 0
        worker.fresh = sampler.empty_bits(B)
        images = torch.arange(B * 3 * SIZE * SIZE).to(torch.uint8).view(B, 3, SIZE, SIZE)
        ids, alone = torch.arange(B), torch.full((B, 1), -1)
        batch = Batch(images, torch.ones(B), ids, ids, alone, torch.ones(B, dtype=torch.bool))
        for _ in range(steps):
            worker._step(batch, epoch=0)
        assert isinstance(worker.model, Dropping)
        return worker.model.masks

    return masks


def test_dropout_differs_between_workers_and_steps_and_goes_on(draw: Draw) -> None:
    first, second, resumed = draw(0, 0, 3), draw(1, 0, 3), draw(0, 2, 1)
    drawn = [*first, *second]
    assert all(0.2 < float((mask == 0).float().mean()) < 0.8 for mask in drawn)
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert torch.equal(resumed[0], first[2])
