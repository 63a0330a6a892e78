"""Invariant: W workers with b images give the gradient of one process with W·b (real gloo).

On CPUs, so without batch norm, which :func:`test_batch_norm_on_cpus_is_of_each_worker` shows.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from wcl_ray.config import LossConfig, ModelConfig, TrainConfig
from wcl_ray.model.encoder import build_encoder
from wcl_ray.model.gather import gather, synchronised
from wcl_ray.model.loss import LossResult, cl_infonce
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.train.loop import batch_loss

B = 12
BROKEN = [1, 2, 10]  # not as many on each of two or three workers
IN_PARTS = ", in micro-batches"  # two on each of two or three workers
SETTINGS: dict[str, tuple[LossConfig, bool, list[int]]] = {  # loss, batch norm, broken images
    "supcon": (LossConfig(), False, []),
    "paper": (LossConfig(estimator="paper"), False, []),
    "dual": (LossConfig(instance_weight=0.5), False, []),
    "broken": (LossConfig(), False, BROKEN),
    "broken, paper, dual": (LossConfig(estimator="paper", instance_weight=0.5), False, BROKEN),
    "batch norm": (LossConfig(), True, []),
}


def data(broken: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of B images; two granularities of each and whether it is valid."""
    generator = torch.Generator().manual_seed(3)
    views = torch.randn(2, B, 6, generator=generator)
    clusters = torch.tensor([0, 1, 0, 2, 1, 2, 2, -1, 3, 3, -1, 0])
    valid = torch.ones(B, dtype=torch.long)
    valid[broken] = 0
    return views, torch.stack([clusters, clusters.clamp(max=1), valid], dim=1)


class Heads(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.chunk(2, dim=1)


def network(norm: bool) -> nn.Module:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(10) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, 10), middle, nn.ReLU(), nn.Linear(10, 8), Heads())


def loss_of(
    model: nn.Module, setting: str, rank: int, world: int, without: list[int] | None = None
) -> LossResult:
    """Of the images of a rank, or of those that are not ``without``."""
    loss, _, broken = SETTINGS[setting]
    views, rows = data(broken)
    if without is None:
        mine = list(range(rank * B // world, (rank + 1) * B // world))
    else:
        mine = [i for i in range(B) if i not in without]
    heads = model(views[:, mine].flatten(0, 1))
    return batch_loss(heads, rows[mine], rank, loss, cl_infonce)


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def count_and_average(reduced, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations
    reduced.append(bucket.buffer().numel())
    return default_hooks.allreduce_hook(dist.group.WORLD, bucket)


def work(rank: int, world: int, port: int, out: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    found: dict[str, Any] = {}
    for setting, (_, norm, _) in SETTINGS.items():
        for name, wrap in (("", lambda x: x), (IN_PARTS, lambda x: MicroBatches(x, 3))):
            model = DistributedDataParallel(wrap(network(norm)))
            reduced: list[int] = []
            model.register_comm_hook(reduced, count_and_average)
            result = loss_of(model, setting, rank, world)
            result.loss.backward()
            assert sum(reduced) == sum(p.numel() for p in model.parameters())  # each one once
            figures = torch.stack([x.detach() for x in result])
            found[setting + name] = gradients(model), figures
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def of_workers(request: pytest.FixtureRequest, tmp_path_factory: Any) -> list[dict[str, Any]]:
    """Setting → gradient and figures, of each worker."""
    world, out = request.param, tmp_path_factory.mktemp("workers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (world, port, str(out)), nprocs=world)
    return [torch.load(out / f"{rank}.pt") for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["", IN_PARTS])
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "batch norm"])
def test_gradient_does_not_depend_on_workers(
    of_workers: list[dict[str, Any]], setting: str, parts: str
) -> None:
    """Nor on micro-batches, and is that of the batch without its broken images, the metrics too."""
    model = network(norm=False)
    result = loss_of(model, setting, 0, 1, without=SETTINGS[setting][2])
    result.loss.backward()
    expected = gradients(model)
    largest = float(expected.abs().max())
    assert largest > 1e-3  # the comparison is not of zeros
    for found in of_workers:
        # sums in another order differ by the rounding of their largest terms
        gradient = found[setting + parts][0]
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=5e-7 * largest)
    figures = torch.stack([found[setting + parts][1] for found in of_workers]).mean(0)
    torch.testing.assert_close(figures, torch.stack([x.detach() for x in result]))


@pytest.mark.slow
def test_batch_norm_on_cpus_is_of_each_worker(of_workers: list[dict[str, Any]]) -> None:
    """As documented: torch has no synchronised batch norm there."""
    model = network(norm=True)
    loss_of(model, "batch norm", 0, 1).loss.backward()
    for found in of_workers:
        difference = found["batch norm"][0] - gradients(model)
        assert difference.norm() > 0.05 * gradients(model).norm()


@pytest.mark.parametrize("backbone", ["small", "timm:mobilenetv3_small_050"])
def test_batch_norm_is_synchronised_between_gpus(backbone: str) -> None:
    settings = ModelConfig(backbone=backbone, projector=(16, 8), projector_norm=True)
    gpu, images = torch.device("cuda", 0), torch.randn(4, 3, 32, 32)

    def norms(model: nn.Module) -> set[bool]:
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
        return {isinstance(m, nn.SyncBatchNorm) for m in model.modules() if isinstance(m, kinds)}

    encoder = build_encoder(settings, 32)
    for device, world, wanted in ((torch.device("cpu"), 2, True), (gpu, 1, True), (gpu, 2, False)):
        assert norms(synchronised(encoder, device, world, wanted)) == {False}
    before, state = encoder.eval()(images)[0], encoder.state_dict()
    weights = {id(p) for p in encoder.parameters()}
    converted = synchronised(encoder, gpu, 2, TrainConfig().sync_bn)
    assert norms(converted) == {True}
    # nothing is lost, such as the activations in timm's layers
    torch.testing.assert_close(converted.eval()(images)[0], before)
    assert {id(p) for p in converted.parameters()} == weights
    build_encoder(settings, 32).load_state_dict(converted.state_dict())  # strict, both ways
    synchronised(build_encoder(settings, 32), gpu, 2, True).load_state_dict(state)


def test_gather_alone_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x
