"""Two views of a batch: the batched augmentation against kornia's and torchvision's.

kornia's is batched and draws for each image, too. torchvision's v2 transforms go image by image,
since on a batch they draw once for all.

    pip install -e ".[bench]" && python benchmarks/augment.py [--size 224] [--batch 256]
        [--repeats 5] [--threads 2] [--crop slice]

Same operators and strengths (resized crop, flip, jitter, grey, normalise) on uint8 images in one
process with the same threads; the sides alternate, medians count. ``--crop`` is kornia's
``cropping_mode``: it cuts and interpolates each image (slice), or warps the batch (resample).
torchvision's crop and ours are antialiased, kornia's is not. The last line is a JSON object with
``vs_torchvision`` and ``vs_kornia``, the ratios of images per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import kornia
import torch
import torchvision
from kornia import augmentation
from torchvision.transforms import v2

from wcl_ray.config import AugmentConfig
from wcl_ray.data.augment import MEAN, STD, Augment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--crop", choices=["slice", "resample"], default="slice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, size = torch.device(options.device), options.size
    images = torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8, device=device)
    aspect, ids = torch.ones(options.batch, device=device), torch.arange(options.batch).to(device)
    ours = Augment(AugmentConfig(), size, seed=0)
    jitter = 0.4, 0.4, 0.4, 0.1
    each = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*jitter)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    batched = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop(
            (size, size), scale=(0.4, 1.0), align_corners=False, cropping_mode=options.crop
        ),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(*jitter, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    ).to(device)

    def speed(work: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return options.batch / (time.perf_counter() - started)

    sides = {
        "wcl_ray": lambda: ours.two_views(images, aspect, ids, 0),
        "kornia": lambda: torch.cat([batched(images.float() / 255) for _ in range(2)]),
        "torchvision": lambda: torch.stack([each(x) for _ in range(2) for x in images]),
    }
    for side in sides.values():
        shape = tuple(side().shape)  # the first call warms up
        assert shape == (2 * options.batch, 3, size, size), shape
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            rates[name].append(speed(side))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        print(f"{name:<12}{value:>12,.1f} images/s (two views each)")
    result: dict[str, object] = {"device": str(device), "size": size, "batch": options.batch}
    result |= {"threads": options.threads, "crop": options.crop}
    result |= {"kornia": kornia.__version__, "torchvision": torchvision.__version__}
    for name in ("kornia", "torchvision"):
        result[f"vs_{name}"] = round(medians["wcl_ray"] / medians[name], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
