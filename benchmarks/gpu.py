"""On one GPU: training steps against the bare network, CPU against GPU, k-means on the device.

    python benchmarks/gpu.py [--seconds 4] [--only agree step micro kmeans] [--small]

Needs torch, torchvision and FAISS, but no Ray.

``agree``: the same batch on both devices in float32: views, loss, gradient. ``step``: a whole
training step as a worker does it (uint8 batch on the device, two views, encoder in bf16, loss in
float32, optimiser) against the same network classifying as many ready-made float images (bf16,
cross-entropy, the same optimiser): what the method costs on top of its forward and backward pass.
The sides alternate, medians count. ``micro``: the same step with the whole batch in the encoder
at once and in micro-batches (``--train.micro-batch-size``), and the growth of memory at its peak.
``kmeans``: nearest centroids of rows that lie on the device
against FAISS on all threads of the CPU, and the sums of the members on both. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wcl_ray.config import AugmentConfig, ModelConfig, TrainConfig
from wcl_ray.data.augment import Augment
from wcl_ray.kmeans.lloyd import Stats
from wcl_ray.kmeans.nearest import faiss_nearest, torch_nearest
from wcl_ray.model.encoder import build_backbone, build_encoder
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.model.optim import build_optimizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = [  # backbone, pixels, images of a batch, torch.compile
    ("small", 32, 1024, False),
    ("small", 32, 1024, True),
    ("resnet50", 224, 256, False),
    ("resnet50", 224, 256, True),
]
ROWS = [(2_000_000, 128, 1_000), (2_000_000, 128, 10_000)]
MICRO = [("resnet50", 224, 256, 64), ("resnet50", 224, 256, 32)]  # …, images of a micro-batch
SMALL_STEPS = [("small", 32, 64, False)]
SMALL_MICRO = [("resnet18", 64, 64, 16)]
SMALL_ROWS = [(50_000, 128, 1_000)]


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def batch(size: int, pixels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 (B, 3, S, S) images, their aspects, ids and (B, 1) clusters of four images each."""
    rng = torch.Generator().manual_seed(0)
    stored = pixels if pixels <= 64 else -(-pixels * 8 // 7)
    coarse = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=rng)
    images = F.interpolate(coarse.float(), stored, mode="bilinear").to(torch.uint8)
    ids = torch.arange(size)
    return images, torch.ones(size), ids, (ids // 4)[:, None].to(torch.int32)


def loss_of(
    encoder: nn.Module,
    views: torch.Tensor,
    clusters: torch.Tensor,
    bf16: bool,
    infonce: Callable[..., Any] = cl_infonce,
) -> torch.Tensor:
    with torch.autocast(views.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        head = encoder(views)[0]
    z1, z2 = head.float().chunk(2)
    loss: torch.Tensor = infonce(z1, z2, z1, z2, clusters, clusters, 0, 0.2)[0]
    return loss


def agree() -> dict[str, float]:
    """Largest differences between both devices."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    given = batch(64, 32)
    strong = AugmentConfig(blur=0.5, solarize=0.2)
    outputs = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        encoder = build_encoder(ModelConfig(), 32).to(device)
        images, aspect, ids, clusters = (x.to(device) for x in given)
        views = Augment(strong, 32, seed=3).two_views(images, aspect, ids, 5)
        loss = loss_of(encoder, views, clusters, bf16=False)
        torch.autograd.backward(loss)
        gradient = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
        outputs.append((views.cpu(), loss.detach().cpu(), gradient.cpu()))
    torch.backends.cudnn.allow_tf32 = True
    (views, loss, gradient), (other, m, h) = outputs
    gap = {
        "views": float((views - other).abs().max()),
        "loss": float((loss - m).abs()),
        "gradient": float((gradient - h).norm() / gradient.norm()),
    }
    text = "  ".join(f"{key} {value:.1e}" for key, value in gap.items())
    print(f"CPU against {DEVICE.type}  {text}", flush=True)
    return gap


def once(work: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def medians(sides: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each side, which take turns."""
    for side in sides.values():
        for _ in range(3):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(sides))]) < 5:
        for name, side in sides.items():
            times[name].append(once(side))
    return {name: statistics.median(values) for name, values in times.items()}


def step(name: str, pixels: int, size: int, compiled: bool, seconds: float) -> dict[str, object]:
    """One kind of step beside the bare network."""
    last = torch.channels_last
    images, aspect, ids, clusters = (x.to(DEVICE) for x in batch(size, pixels))
    encoder = build_encoder(ModelConfig(backbone=name), pixels).to(DEVICE).to(memory_format=last)
    bare = build_backbone(name, pixels).to(DEVICE).to(memory_format=last)
    optimizer, other = (build_optimizer(m, TrainConfig()) for m in (encoder, bare))
    strength = AugmentConfig(blur=0.5 if pixels > 64 else 0.0)
    augment, infonce = Augment(strength, pixels, seed=0, compile=compiled), cl_infonce
    if compiled:
        encoder.compile()
        bare.compile()
        infonce = torch.compile(infonce)
    ready = torch.randn(2 * size, 3, pixels, pixels, device=DEVICE).to(memory_format=last)
    classes = torch.randint(0, 10, (2 * size,), device=DEVICE)
    z1, z2 = (torch.randn(size, 128, device=DEVICE, requires_grad=True) for _ in range(2))

    def views() -> torch.Tensor:
        return augment.two_views(images, aspect, ids, 0).to(memory_format=last)

    def ours() -> None:
        loss = loss_of(encoder, views(), clusters, True, infonce)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(encoder.parameters(), float("inf"))
        optimizer.step()

    def peer() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = bare(ready)
        loss = F.cross_entropy(out.float(), classes)
        other.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        other.step()

    def loss() -> None:
        value = infonce(z1, z2, z1, z2, clusters, clusters, 0, 0.2)[0]
        torch.autograd.backward(value)

    took = medians({"step": ours, "bare": peer, "views": views, "loss": loss}, seconds)
    row: dict[str, object] = {"backbone": name, "pixels": pixels, "batch": size}
    row |= {"compile": compiled, "images/s": round(size / took["step"])}
    row |= {"against bare": round(took["step"] / took["bare"], 3)}
    row |= {f"{key} ms": round(1e3 * value, 2) for key, value in took.items()}
    if DEVICE.type == "cuda":
        row["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    return row


def micro_batches(
    name: str, pixels: int, size: int, part: int, seconds: float
) -> dict[str, object]:
    """A step in micro-batches beside one with the whole batch at once."""
    last = torch.channels_last
    images, aspect, ids, clusters = (x.to(DEVICE) for x in batch(size, pixels))
    encoder = build_encoder(ModelConfig(backbone=name), pixels).to(DEVICE).to(memory_format=last)
    optimizer = build_optimizer(encoder, TrainConfig())
    augment = Augment(AugmentConfig(), pixels, seed=0)

    def run(model: nn.Module) -> None:
        views = augment.two_views(images, aspect, ids, 0).to(memory_format=last)
        loss = loss_of(model, views, clusters, DEVICE.type == "cuda")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    sides: dict[str, Callable[[], object]] = {
        "whole": lambda: run(encoder),
        "micro": lambda: run(MicroBatches(encoder, part)),
    }
    took = medians(sides, seconds)
    peaks = {name: peak(side) / 2**30 for name, side in sides.items()}
    row: dict[str, object] = {"backbone": name, "pixels": pixels, "batch": size, "micro": part}
    row |= {f"{key} ms": round(1e3 * value, 2) for key, value in took.items()}
    row |= {f"{key} peak GiB": round(value, 2) for key, value in peaks.items()}
    return row | {"against whole": round(took["micro"] / took["whole"], 3)}


def peak(work: Callable[[], object]) -> float:
    """Growth of the memory of the device in a call at its peak, in bytes."""
    if DEVICE.type != "cuda":
        from memory import measure

        return measure(work)[0]["peak"]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return float(torch.cuda.max_memory_allocated() - before)


def kmeans(n: int, d: int, k: int) -> dict[str, object]:
    """Nearest centroids and the sums of the members, in seconds for all rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    centroids = x[rng.choice(n, k, replace=False)].copy()
    device: Callable[[Any], np.ndarray] = torch_nearest(
        centroids, spherical=False, device=DEVICE.type
    )
    rows = torch.from_numpy(x).to(DEVICE)
    device(rows[:100_000])
    seconds = statistics.median(once(lambda: device(rows)) for _ in range(3))
    labels = device(rows)
    part = x[: n // 10]
    host = faiss_nearest(centroids, spherical=False, threads=os.cpu_count() or 1)
    theirs = 10 * once(lambda: host(part))  # as if for all rows
    stats, squares = Stats.zeros(k, d), np.einsum("ij,ij->i", x, x).astype(np.float64)
    sums = once(lambda: stats.add_rows(x, squares, np.arange(n), labels, 1))
    other = Stats.zeros(k, d)
    other.add_rows(x, squares, np.arange(n), labels, 1, rows)
    other = Stats.zeros(k, d)
    there = once(lambda: other.add_rows(x, squares, np.arange(n), labels, 1, rows))
    return {
        "rows": n, "dimensions": d, "K": k, "device s": round(seconds, 4),
        "faiss s": round(theirs, 3), "sums s": round(sums, 3),
        "sums on the device s": round(there, 4),
        "against faiss": round(seconds / theirs, 4),
        "same labels": float((host(part) == labels[: len(part)]).mean()),
    }  # fmt: skip


def show(row: dict[str, object]) -> dict[str, object]:
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind of step")
    parser.add_argument("--only", nargs="+", default=["agree", "step", "micro", "kmeans"])
    parser.add_argument("--small", action="store_true", help="sizes for a look without a GPU")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    result: dict[str, object] = {"device": name}
    if "agree" in options.only:
        result["agree"] = agree()
    if "step" in options.only:
        cases = SMALL_STEPS if options.small else STEPS
        result["step"] = [show(step(*case, options.seconds)) for case in cases]
    if "micro" in options.only:
        sizes = SMALL_MICRO if options.small else MICRO
        result["micro"] = [show(micro_batches(*case, options.seconds)) for case in sizes]
    if "kmeans" in options.only:
        result["kmeans"] = [show(kmeans(*rows)) for rows in (SMALL_ROWS if options.small else ROWS)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
