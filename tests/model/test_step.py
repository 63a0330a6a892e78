"""The step of a training worker, without Ray: what it learns, and what dropout draws on each worker
and at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import wcl_ray.train.loop
from wcl_ray.config import AugmentConfig, LossConfig, TrainConfig
from wcl_ray.data.augment import Augment
from wcl_ray.data.batch import Batch
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.model.optim import build_optimizer
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.loop import Learner
from wcl_ray.train.progress import Progress

B, SIZE = 6, 8
Draw = Callable[[int, int, int], list[torch.Tensor]]


class Dropping(nn.Module):
    """An encoder with dropout that keeps the masks it drew."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 16)
        self.masks: list[torch.Tensor] = []
        self.p = p

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        z = self.linear(x.flatten(1))
        mask = nn.functional.dropout(torch.ones_like(z), self.p, training=self.training)
        self.masks.append(mask)
        return (z * mask,)


class Heads(nn.Module):
    """An encoder with two heads and without random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 16)
        self.heads = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.linear(x.flatten(1)).relu()
        return tuple(head(hidden) for head in self.heads)


def learner(encoder: nn.Module, rank: int = 0, start: int = 0, optimizer: Any = "adamw") -> Learner:
    train = TrainConfig(batch_size=2 * B, clip=1.0, optimizer=optimizer)
    return Learner(
        model=encoder,
        optimizer=build_optimizer(encoder, train),
        augment=Augment(AugmentConfig(), SIZE, seed=0),
        cl_infonce=cl_infonce,
        train=train,
        loss=LossConfig(),
        seed=0,
        device=torch.device("cpu"),
        rank=rank,
        state=TrainState(step=start, images=start * 2 * B),
        progress=Progress(1, 0, 0, 10 * 2 * B),
    )


def batch(clusters: torch.Tensor) -> Batch:
    images = torch.arange(B * 3 * SIZE * SIZE).to(torch.uint8).view(B, 3, SIZE, SIZE)
    ids, valid = torch.arange(B), torch.ones(B, dtype=torch.bool)
    none = torch.empty(B, 0, dtype=torch.uint8)
    return Batch(images, torch.ones(B), ids, ids, clusters[:, None], none, valid)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """(rank of one of two workers, first step, steps) → the masks of those steps."""
    # the other worker is given the same images
    monkeypatch.setattr(wcl_ray.train.loop, "gather", lambda x: torch.cat([x, x]))

    def masks(rank: int, start: int, steps: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        encoder = Dropping()
        worker = learner(encoder, rank, start)
        for _ in range(steps):
            worker.training_step(batch(torch.full((B,), -1)))
            worker.state.step += 1
        return encoder.masks

    return masks


def test_levels_and_graded_positives_reach_the_loss() -> None:
    torch.manual_seed(0)
    encoder = Dropping(p=0.0)
    worker = learner(encoder)
    given = batch(torch.tensor([0, 0, 0, 0, 1, 1]))
    given.clusters = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2]])
    given.attributes = torch.tensor([[0b11000000], [0b10000000], [0], [64], [255], [1]]).byte()
    with torch.no_grad():
        views = worker.augment.two_views(given.images, given.aspect, given.ids, epoch=0)
        z1, z2 = encoder(views)[0].chunk(2)
        c = given.clusters

        def expected(**more: Any) -> torch.Tensor:
            return cl_infonce(z1, z2, z1, z2, c, c, 0, worker.loss.temperature, **more).loss

        levels = expected(siblings=True, level_weights=(2.0, 1.0))
        bits = torch.from_numpy(np.unpackbits(given.attributes.numpy(), axis=1)).double()
        weights = torch.arange(1, 9).double()
        shared = (bits[:, None] * bits[None] * weights).sum(2)
        either = (torch.maximum(bits[:, None], bits[None]) * weights).sum(2)
        graded = expected(similarity=torch.where(either > 0, shared / either, 0.0))
    assert len({float(expected()), float(levels), float(graded)}) == 3
    for loss, attribute_weights, value in (
        (LossConfig(negatives="siblings", level_weights=(2.0, 1.0)), None, levels),
        (LossConfig(positives="graded"), weights.float(), graded),
    ):
        worker = learner(encoder)
        worker.loss, worker.attribute_weights = loss, attribute_weights
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        assert float(worker.training_step(given).loss) == pytest.approx(float(value), rel=1e-5)
        encoder.load_state_dict(before)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        LossConfig(estimator="paper", instance_weight=2.0),
        LossConfig(negatives="siblings", level_weights=(2.0, 1.0)),
        LossConfig(positives="graded"),
    ],
    ids=["cluster", "paper, instance", "levels", "graded"],
)
def test_micro_batches_make_the_same_step(loss: LossConfig, optimizer: Any) -> None:
    """Metrics and weights; one image is broken, and micro-batches have two or one."""
    found = []
    for size in (0, 2):
        torch.manual_seed(0)
        encoder = Heads()
        worker = learner(MicroBatches(encoder, size) if size else encoder, optimizer=optimizer)
        worker.loss = loss
        given = batch(torch.tensor([0, 0, 0, 0, 1, 1]))
        given.clusters = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2]])
        given.valid[3] = False
        if loss.positives == "graded":
            given.attributes = torch.tensor([[192], [128], [0], [64], [255], [1]]).byte()
            worker.attribute_weights = torch.arange(1, 9).float()
        figures = torch.stack([*worker.training_step(given)])
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        weights = nn.utils.parameters_to_vector(encoder.parameters())
        found.append((figures, gradient, weights.detach()))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_micro_batches_in_bfloat16_add_their_gradients_in_float32() -> None:
    torch.manual_seed(0)
    encoder = Heads()
    given = batch(torch.tensor([0, 0, 0, 0, 1, 1]))
    worker = learner(MicroBatches(encoder, 1))
    worker.bf16, worker.train = True, replace(worker.train, clip=0.0)
    worker.training_step(given)
    views = worker.augment.two_views(given.images, given.aspect, given.ids, epoch=0)
    torch.manual_seed(0)
    reference = Heads()
    outputs = []
    for i in range(B):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(reference(views[[i, i + B]])[0])
    z1, z2 = (torch.cat([z[[v]] for z in outputs]) for v in (0, 1))
    cached = [z.detach().float().requires_grad_() for z in (z1, z2)]
    column = given.clusters
    loss = cl_infonce(*cached, *cached, column, column, 0, worker.loss.temperature).loss
    loss.backward()
    for i, z in enumerate(outputs):  # gradient caching by hand, one image after the other
        z.backward(torch.stack([x.grad[i] for x in cached if x.grad is not None]).bfloat16())
    expected, found = (m.linear.weight.grad for m in (reference, encoder))
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_dropout_differs_between_workers_and_steps_and_goes_on(draw: Draw) -> None:
    first, second, resumed = draw(0, 0, 3), draw(1, 0, 3), draw(0, 2, 1)
    drawn = [*first, *second]
    assert all(0.2 < float((mask == 0).float().mean()) < 0.8 for mask in drawn)
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert torch.equal(resumed[0], first[2])


def test_a_step_goes_from_the_uint8_batch_to_new_weights() -> None:
    """The metrics are those of Cl-InfoNCE of the two views, before the optimiser's step."""
    torch.manual_seed(0)
    encoder = Dropping(p=0.0)
    worker = learner(encoder)
    clusters = torch.tensor([0, 0, 0, 1, 1, -1])
    given = batch(clusters)
    with torch.no_grad():
        views = worker.augment.two_views(given.images, given.aspect, given.ids, epoch=0)
        z1, z2 = encoder(views)[0].chunk(2)
        column = clusters[:, None]
        expected = cl_infonce(z1, z2, z1, z2, column, column, 0, worker.loss.temperature)
    before = encoder.linear.weight.detach().clone()
    metrics = worker.training_step(given)
    assert torch.equal(metrics.loss, expected.loss)
    assert float(metrics.positives) == pytest.approx((3 * 2 + 2 * 1) / B)
    assert float(metrics.anchors_without_positive) == pytest.approx(1 / B)
    assert float(metrics.grad_norm) > 0
    assert not metrics.loss.requires_grad
    step = (encoder.linear.weight.detach() - before).abs().max()
    assert 0 < float(step) <= 1.01 * worker.optimizer.param_groups[0]["lr"]  # of AdamW's first
