"""Two views of a batch: the batched augmentation against torchvision's transforms, image by image.

    python benchmarks/augment.py [--size 32] [--batch 256] [--repeats 5]

Same operators and strengths (resized crop, flip, jitter, grey, normalise) on uint8 images in one
process with the same threads; the sides alternate, medians count. The last line is a JSON object
with ``vs_torchvision``, the ratio of images per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from wcl_ray.config import AugmentConfig
from wcl_ray.data.augment import MEAN, STD, Augment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device, size = torch.device(options.device), options.size
    images = torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8, device=device)
    aspect, ids = torch.ones(options.batch, device=device), torch.arange(options.batch).to(device)
    ours = Augment(AugmentConfig(), size, seed=0)
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def speed(work: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return options.batch / (time.perf_counter() - started)

    sides = {
        "batched": lambda: ours.two_views(images, aspect, ids, 0),
        "torchvision": lambda: torch.stack([theirs(x) for _ in range(2) for x in images]),
    }
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            rates[name].append(speed(side))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        print(f"{name:<12}{value:>12,.0f} images/s (two views each)")
    ratio = medians["batched"] / medians["torchvision"]
    result = {"device": str(device), "size": size, "batch": options.batch}
    print(json.dumps(result | {"vs_torchvision": round(ratio, 2)}))


if __name__ == "__main__":
    main()
