"""The losses of the methods against slow versions of their formulas, and their gradients over
several workers (real gloo)."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wcl_ray.config import ModelConfig
from wcl_ray.model.encoder import Encoder, EncoderSpec
from wcl_ray.model.loss import LossResult, cl_infonce
from wcl_ray.model.methods import LocalBatch, Method, Preset
from wcl_ray.model.methods.pcl import PCL
from wcl_ray.model.methods.swav import sinkhorn
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.registry import METHODS

B, D, WIDTH, A = 12, 8, 6, 10
TAU = 0.3
BROKEN = [1, 2, 10]
BARE = [4]  # without metadata
SIZES = {"cross-entropy": (4,), "attributes": (A,), "cmc": (A,), "swav": (5,), "pcl": (4, 2)}
USED = [i for i in range(B) if i not in BROKEN]
MODEL = ModelConfig(projector=(16, D))


def clusters() -> torch.Tensor:
    fine = torch.tensor([0, 1, 0, 2, 1, 2, 2, -1, 3, 3, -1, 0])
    return torch.stack([fine, fine.clamp(max=1)], dim=1)


def attributes() -> torch.Tensor:
    bits = (torch.rand(B, A, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    bits[:, 0] = 1
    bits[BARE] = 0
    return bits


def batch_of(rows: slice) -> LocalBatch:
    valid = torch.ones(B, dtype=torch.bool)
    valid[BROKEN] = False
    return LocalBatch(clusters()[rows], valid[rows], attributes()[rows], rows.start, TAU)


def encoder(name: str) -> Encoder:
    """Of the method, on vectors instead of images."""
    torch.manual_seed(0)
    network = Encoder(nn.Linear(WIDTH, WIDTH), WIDTH, MODEL, heads=1)
    method: type[Method] = METHODS.get(name)
    network.method = method(WIDTH, MODEL, SIZES[name])
    if not method.projects:
        network.projectors = nn.ModuleList()
    network.method.begin_round(clusters().numpy())
    return network


def outputs_of(network: nn.Module, rows: slice) -> tuple[torch.Tensor, ...]:
    views = torch.randn(2, B, WIDTH, generator=torch.Generator().manual_seed(3))
    outputs: tuple[torch.Tensor, ...] = network(views[:, rows].flatten(0, 1), attributes()[rows])
    return outputs


def loss_of(network: nn.Module, method: Method, rows: slice) -> LossResult:
    return method.loss(outputs_of(network, rows), batch_of(rows))


def log_softmax(logits: list[float], target: int) -> float:
    return logits[target] - math.log(sum(math.exp(x) for x in logits))


def cosines(a: torch.Tensor, b: torch.Tensor) -> list[list[float]]:
    table: list[list[float]] = nn.functional.cosine_similarity(a[:, None], b[None], dim=2).tolist()
    return table


def slow_cross_entropy(network: Encoder) -> float:
    (logits,) = outputs_of(network, slice(0, B))
    terms = [
        -log_softmax(logits[view * B + i].tolist(), int(clusters()[i, 0]))
        for i in USED
        for view in (0, 1)
        if clusters()[i, 0] >= 0
    ]
    return sum(terms) / len(terms)


def slow_attributes(network: Encoder) -> float:
    (logits,) = outputs_of(network, slice(0, B))
    terms = []
    for i in set(USED) - set(BARE):
        for view in (0, 1):
            for logit, bit in zip(logits[view * B + i].tolist(), attributes()[i], strict=True):
                p = 1 / (1 + math.exp(-logit))
                terms.append(-math.log(p if bit else 1 - p))
    return sum(terms) / len(terms)


def slow_cmc(network: Encoder) -> float:
    z, m = outputs_of(network, slice(0, B))
    known = [i for i in USED if i not in BARE]
    terms = []
    for view in (z[:B][known], z[B:][known]):
        for anchors, candidates in ((view, m[known]), (m[known], view)):
            for i, row in enumerate(cosines(anchors, candidates)):
                terms.append(-log_softmax([x / TAU for x in row], i))
    return sum(terms) / len(terms)


def slow_sinkhorn(scores: torch.Tensor) -> list[list[float]]:
    """As in the listing of the paper's appendix, one entry at a time."""
    q = [[math.exp(x / 0.03) for x in row] for row in scores.tolist()]
    b, k = len(q), len(q[0])
    for _ in range(3):
        columns = [sum(row[j] for row in q) for j in range(k)]
        q = [[row[j] / columns[j] / k for j in range(k)] for row in q]
        q = [[x / sum(row) / b for x in row] for row in q]
    return [[x * b for x in row] for row in q]


def slow_swav(network: Encoder) -> float:
    (scores,) = outputs_of(network, slice(0, B))
    views = scores[:B][USED], scores[B:][USED]
    terms = []
    for target, predicted in (views, views[::-1]):
        for q, row in zip(slow_sinkhorn(target), predicted.tolist(), strict=True):
            logits = [x / TAU for x in row]
            terms.append(-sum(w * log_softmax(logits, k) for k, w in enumerate(q)))
    return sum(terms) / len(terms)


def slow_pcl(network: Encoder) -> float:
    """Of the first step: prototypes are the means of the batch."""
    (z,) = outputs_of(network, slice(0, B))
    z = nn.functional.normalize(z, dim=1)
    z1, z2 = z[:B][USED], z[B:][USED]
    alone = torch.full((len(USED), 1), -1)
    total = cl_infonce(z1, z2, z1, z2, alone, alone, 0, TAU).loss.item()
    for g in (0, 1):
        column = clusters()[:, g]
        members = {c: [i for i in USED if column[i] == c] for c in sorted(set(column.tolist()))}
        members = {c: rows for c, rows in members.items() if c >= 0 and rows}
        centres, phi = [], []
        for c, rows in members.items():
            points = torch.cat([z[:B][rows], z[B:][rows]])
            centres.append(nn.functional.normalize(points.mean(0), dim=0))
            apart = (points - centres[-1]).norm(dim=1).mean()
            phi.append(float(apart) / math.log(int((column == c).sum()) + 10))
        low, high = torch.quantile(torch.tensor(phi), torch.tensor([0.1, 0.9])).tolist()
        phi = [min(max(x, low), high) for x in phi]
        phi = [x / (sum(phi) / len(phi)) * TAU for x in phi]
        terms = []
        for target, rows in enumerate(members.values()):
            for row in cosines(torch.cat([z[:B][rows], z[B:][rows]]), torch.stack(centres)):
                logits = [x / t for x, t in zip(row, phi, strict=True)]
                terms.append(-log_softmax(logits, target))
        total += sum(terms) / len(terms) / 2
    return total


SLOW = {
    "cross-entropy": slow_cross_entropy,
    "attributes": slow_attributes,
    "cmc": slow_cmc,
    "swav": slow_swav,
    "pcl": slow_pcl,
}


def test_all_methods_are_here() -> None:
    presets = {name for name in METHODS.names() if issubclass(METHODS.get(name), Preset)}
    assert presets == {"cl-infonce", "simclr", "supcon"}
    assert set(METHODS.names()) - presets == set(SLOW)


@pytest.mark.parametrize("name", SLOW)
def test_loss_is_the_formula(name: str) -> None:
    network = encoder(name)
    assert network.method is not None
    found = loss_of(network, network.method, slice(0, B)).loss
    assert found.item() == pytest.approx(SLOW[name](encoder(name)), rel=1e-4)
    found.backward()
    for key, parameter in network.named_parameters():  # or DistributedDataParallel waits for them
        assert parameter.grad is not None, key


@pytest.mark.parametrize("name", SLOW)
def test_bfloat16_is_close(name: str) -> None:
    network = encoder(name)
    assert network.method is not None
    expected = loss_of(encoder(name), network.method, slice(0, B)).loss
    network.method.begin_round(clusters().numpy())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = outputs_of(network, slice(0, B))
    found = network.method.loss(outputs, batch_of(slice(0, B))).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["attributes", "cmc", "cross-entropy"])
def test_a_batch_without_a_usable_image_has_no_gradient(name: str) -> None:
    network = encoder(name)
    assert network.method is not None
    batch = batch_of(slice(0, B))
    batch = batch._replace(attributes=torch.zeros(B, A), clusters=torch.full((B, 2), -1))
    result = network.method.loss(outputs_of(network, slice(0, B)), batch)
    result.loss.backward()
    assert float(result.loss) == 0
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("name", SLOW)
def test_micro_batches_have_the_same_loss_and_gradient(name: str) -> None:
    whole, parts = encoder(name), encoder(name)
    for network, model in ((whole, whole), (parts, MicroBatches(parts, 5))):
        assert network.method is not None
        for _ in range(2):  # the second with the running means of the first
            network.zero_grad()
            loss_of(model, network.method, slice(0, B)).loss.backward()
    assert gradients(whole).abs().max() > 1e-3
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-5, atol=1e-6)


def test_assignments_are_even() -> None:
    scores = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 0.5  # nearest to all
    q = sinkhorn(scores, torch.ones(64, dtype=torch.bool))
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    assert q.sum(0).max() / q.sum(0).min() < 2


@pytest.mark.parametrize("name", ["attributes", "cmc", "cross-entropy", "pcl", "swav"])
def test_a_batch_without_a_readable_image(name: str) -> None:
    network = encoder(name)
    assert network.method is not None
    batch = batch_of(slice(0, B))._replace(valid=torch.zeros(B, dtype=torch.bool))
    loss = network.method.loss(outputs_of(network, slice(0, B)), batch).loss
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in (loss, *gradients))


def test_warm_up_rounds_of_pcl_are_simclr_and_rounds_forget() -> None:
    network = encoder("pcl")
    method = network.method
    assert isinstance(method, PCL)
    outputs, batch = outputs_of(network, slice(0, B)), batch_of(slice(0, B))
    alone = torch.full((B, 1), -1)
    warm_up = method.loss(outputs, batch._replace(clusters=alone)).loss
    z1, z2 = outputs[0].chunk(2)
    expected = cl_infonce(z1, z2, z1, z2, alone, alone, 0, TAU, all_valid=batch.valid).loss
    torch.testing.assert_close(warm_up, expected)
    first = method.loss(outputs, batch).loss
    method.means.mul_(torch.rand_like(method.means))
    assert float(method.loss(outputs, batch).loss) != pytest.approx(float(first))
    method.begin_round(clusters().numpy())
    torch.testing.assert_close(method.loss(outputs, batch).loss, first)


@pytest.mark.parametrize("name", METHODS.names())
def test_export_is_that_of_the_backbone(name: str) -> None:
    """Nothing of the method is in it, and the backbone starts from the same weights."""
    torch.manual_seed(0)
    plain = EncoderSpec(ModelConfig(projector=(8,)), 16)
    expected = safetensors.torch.load(plain.export(plain.build()))
    spec = EncoderSpec(ModelConfig(projector=(8,)), 16, method=name, sizes=SIZES.get(name, ()))
    torch.manual_seed(0)
    state = safetensors.torch.load(spec.export(spec.build()))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def work(rank: int, world: int, port: int, out: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, world_size=world, rank=rank)
    found: dict[str, Any] = {}
    rows = slice(rank * B // world, (rank + 1) * B // world)
    for name in SLOW:
        network = encoder(name)
        assert network.method is not None
        model = DistributedDataParallel(network)
        for _ in range(2):  # the second with running means of the first
            model.zero_grad()
            result = loss_of(model, network.method, rows)
            result.loss.backward()
        found[name] = gradients(network), torch.stack([x.detach() for x in result])
    torch.save(found, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_gradient_does_not_depend_on_workers(world: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (world, port, str(tmp_path)), nprocs=world)
    of_workers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name in SLOW:
        network = encoder(name)
        assert network.method is not None
        for _ in range(2):
            network.zero_grad()
            result = loss_of(network, network.method, slice(0, B))
            result.loss.backward()
        expected = gradients(network)
        assert expected.abs().max() > 1e-3
        for found in of_workers:
            torch.testing.assert_close(found[name][0], expected, rtol=1e-5, atol=1e-6)
        figures = torch.stack([found[name][1] for found in of_workers]).mean(0)
        torch.testing.assert_close(figures, torch.stack([x.detach() for x in result]))
