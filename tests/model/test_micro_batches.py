"""Gradient caching: what is kept, what is drawn again, and what batch norm does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from wcl_ray.config import ModelConfig
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import Encoder, build_encoder
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.train.checkpoint import plain

B, SIZE = 7, 3  # micro-batches of 3, 2 and 2 images
Model = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class Small(nn.Module):
    """Batch norm and dropout between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 64), nn.BatchNorm1d(64)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(64, 8)
        self.hidden: list[StorageWeakRef] = []
        self.alive: list[int] = []  # activations of other calls at the start of each call

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        compiled = torch.compiler.is_compiling()
        if not compiled:
            self._count()
        y = self.drop(self.norm(self.first(x)).relu())
        if not compiled:
            self.hidden.append(StorageWeakRef(y.untyped_storage()))
        return (self.last(y),)

    def _count(self) -> None:
        self.alive.append(sum(not ref.expired() for ref in self.hidden))


def loss_of(model: Model, x: torch.Tensor) -> torch.Tensor:
    z1, z2 = model(x)[0].chunk(2)
    column = torch.tensor([0, 0, 1, 1, 2, 2, -1])[:, None]
    return cl_infonce(z1, z2, z1, z2, column, column, 0, 0.2).loss


def in_turn(model: nn.Module) -> Model:
    """The micro-batches one after the other, with all activations kept."""

    def outputs(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = zip(*(view.tensor_split(3) for view in x.chunk(2)), strict=True)
        views = [model(torch.cat(part))[0].chunk(2) for part in parts]
        return (torch.cat([z for pair in zip(*views, strict=True) for z in pair]),)

    return outputs


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def step(model: Model, x: torch.Tensor) -> None:
    torch.manual_seed(1)  # of the masks
    loss_of(model, x).backward()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batch_norm_and_dropout_are_those_of_micro_batches_in_turn(compiled: bool) -> None:
    torch.manual_seed(0)
    expected = Small()
    found, x = copy.deepcopy(expected), torch.randn(2 * B, 6)
    inner, reference = (
        torch.compile(m, dynamic=False) if compiled else m for m in (found, expected)
    )
    model, turn = MicroBatches(inner, SIZE), in_turn(reference)
    for count in (1, 2):
        step(model, x)
        step(turn, x)
        torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-5, atol=1e-6)
        for name, value in expected.norm.named_buffers():  # updated once for each micro-batch
            torch.testing.assert_close(found.norm.get_buffer(name), value)
        assert int(found.norm.num_batches_tracked) == 3 * count
    step(MicroBatches(found, B), x)
    assert int(found.norm.num_batches_tracked) == 7


def test_a_convolutional_network_with_batch_norm() -> None:
    torch.manual_seed(0)
    expected = build_encoder(ModelConfig(projector_norm=True), 16)
    found, x = copy.deepcopy(expected), torch.randn(2 * B, 3, 16, 16)
    step(MicroBatches(found, SIZE), x.to(memory_format=torch.channels_last))
    step(in_turn(expected), x.to(memory_format=torch.channels_last))
    scale = float(gradient(expected).abs().max())
    torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-5, atol=1e-6 * scale)
    for (name, value), (_, other) in zip(
        found.named_buffers(), expected.named_buffers(), strict=True
    ):
        torch.testing.assert_close(value, other, msg=name)


def test_the_activations_of_one_micro_batch_are_kept_at_most() -> None:
    network, x = Small(), torch.randn(2 * B, 6)
    loss_of(MicroBatches(network, SIZE), x).backward()
    assert network.alive == [0, 0, 0, 0, 0, 0]
    network.alive.clear()
    loss_of(in_turn(network), x).backward()
    assert network.alive == [0, 1, 2]


def test_outputs_of_another_length_are_refused() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.mean(0, keepdim=True),)

    with pytest.raises(UserError, match=r"1 rows for 3 images; with train.micro-batch-size"):
        MicroBatches(Mean(), SIZE)(torch.randn(2 * B, 6))


def test_checkpoints_are_those_of_the_encoder() -> None:
    encoder: Encoder = build_encoder(ModelConfig(), 16)
    assert plain(MicroBatches(encoder, SIZE)) is encoder
    assert plain(MicroBatches(torch.compile(encoder), SIZE)) is encoder  # type: ignore[arg-type]
