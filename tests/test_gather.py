"""Invariant: W workers with b images give the gradient of one process with W·b (real gloo)."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wcl_ray.model.gather import gather
from wcl_ray.model.loss import cl_infonce

B = 12


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, B, 6, generator=generator)
    clusters = torch.tensor([0, 1, 0, 2, 1, 2, 2, -1, 3, 3, -1, 0])
    return views, torch.stack([clusters, clusters.clamp(max=1)], dim=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))


def loss_of(model: nn.Module, rank: int, world: int, estimator: str, dual: bool) -> torch.Tensor:
    views, clusters = data()
    b = B // world
    mine = slice(rank * b, (rank + 1) * b)
    z = model(torch.cat([views[0, mine], views[1, mine]]))
    local, everyone = clusters[mine], gather(clusters[mine])
    total = torch.zeros(())
    for head, (one, many) in enumerate(
        [(local, everyone), (torch.full_like(local, -1), torch.full_like(everyone, -1))][: 1 + dual]
    ):
        z1, z2 = z[:, head * 4 : head * 4 + 4].chunk(2)
        result = cl_infonce(z1, z2, gather(z1), gather(z2), one, many, rank * b, 0.2, estimator)
        total = total + result.loss
    return total


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def work(rank: int, world: int, port: int, estimator: str, dual: bool, out: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    model = DistributedDataParallel(network())
    loss_of(model, rank, world, estimator, dual).backward()
    torch.save(gradients(model), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("estimator", "dual"), [("supcon", False), ("paper", False), ("supcon", True)]
)
def test_gradient_does_not_depend_on_workers(
    world: int, estimator: str, dual: bool, tmp_path: Path
) -> None:
    model = network()
    loss_of(model, 0, 1, estimator, dual).backward()
    expected = gradients(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (world, port, estimator, dual, str(tmp_path)), nprocs=world)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().max() > 1e-3  # the comparison is not of zeros


def test_gather_alone_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x
