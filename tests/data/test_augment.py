"""The batched operators are torchvision's single-image ones; randomness is a function of the id."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F

from wcl_ray.config import AugmentConfig
from wcl_ray.data import augment
from wcl_ray.data.augment import (
    CPU_VALUES,
    DRAWS,
    Augment,
    centre,
    crop_boxes,
    resized_crop,
    uniforms,
)

Op = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (augment.brightness, F.adjust_brightness, 0.5, 1.5),
        (augment.contrast, F.adjust_contrast, 0.5, 1.5),
        (augment.saturation, F.adjust_saturation, 0.5, 1.5),
        (augment.hue, F.adjust_hue, -0.5, 0.5),
        (augment.blur, lambda x, s: F.gaussian_blur(x, [3, 3], [s]), 0.1, 2.0),
    ],
)
def test_operators(
    ours: Op, theirs: Callable[..., torch.Tensor], low: float, high: float, images: torch.Tensor
) -> None:
    parameters = torch.linspace(low, high, 6)
    expected = torch.stack([theirs(x, float(p)) for x, p in zip(images, parameters, strict=True)])
    assert torch.allclose(ours(images, parameters), expected, atol=1e-5)


def test_greyscale_and_solarise(images: torch.Tensor) -> None:
    grey = augment.grayscale(images).expand(-1, 3, -1, -1)
    assert torch.allclose(grey, F.rgb_to_grayscale(images, 3), atol=1e-6)
    assert torch.allclose(augment.solarize(images), F.solarize(images, 0.5))


@pytest.mark.parametrize("size", [16, 32, 48])
def test_resized_crop_and_flip(size: int, images: torch.Tensor) -> None:
    boxes = torch.tensor([[4, 6, 30, 20], [0, 0, 32, 32], [3, 1, 9, 31]])  # left top right bottom
    flip = torch.tensor([False, True, True])
    found = resized_crop(images[:3], boxes / 32, size, flip)
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        height, width = bottom - top, right - left
        expected = F.resized_crop(images[i], top, left, height, width, [size, size], antialias=True)
        if flip[i]:
            expected = F.horizontal_flip(expected)
        assert torch.allclose(found[i], expected, atol=1e-5)


def test_boxes_follow_the_original_geometry() -> None:
    aspect = torch.tensor([0.5, 1.0, 2.0]).repeat(3000)
    u = uniforms(torch.arange(9000), 0, 0, 0, DRAWS)
    box = crop_boxes(u, aspect, 0.3)
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    assert (box >= -1e-6).all()
    assert (box <= 1 + 1e-6).all()
    ratio = width * aspect / height
    assert (ratio > 0.74).all()
    assert (ratio < 1.34).all()
    area = width * height
    assert area.min() > 0.29
    assert 0.5 < area[aspect == 1].mean() < 0.7


def test_uniforms_are_uniform_and_independent() -> None:
    u = uniforms(torch.arange(50_000), seed=1, epoch=2, view=0, count=4)
    assert u.min() >= 0
    assert u.max() < 1
    histogram = torch.histc(u, bins=20, min=0, max=1) / u.numel()
    assert torch.allclose(histogram, torch.full((20,), 0.05), atol=0.002)
    others = [
        uniforms(torch.arange(50_000), s, e, v, 1)[:, 0]
        for s, e, v in ((1, 2, 1), (1, 3, 0), (2, 2, 0))
    ]
    columns = torch.stack([*u.T, u[:, 0].roll(1), *others]).numpy()
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.02


def test_views_depend_on_the_id_alone() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    aspect, ids = torch.ones(8), torch.arange(100, 108)
    make = Augment(AugmentConfig(blur=0.5, solarize=0.5), 24, seed=3)
    views = make.two_views(images, aspect, ids, epoch=5)
    assert views.shape == (16, 3, 24, 24)
    order = torch.randperm(8)
    shuffled = make.two_views(images[order], aspect, ids[order], epoch=5)
    assert torch.allclose(shuffled[:8], views[:8][order], atol=1e-6)
    assert not torch.allclose(views[:8], views[8:])
    assert not torch.allclose(make.view(images, aspect, ids, 6, 0), views[:8])


def test_a_large_batch_has_the_views_of_its_images() -> None:
    """It is augmented in parts."""
    images = torch.randint(0, 256, (9, 3, 224, 224), dtype=torch.uint8)
    assert images.numel() > CPU_VALUES
    aspect, ids = torch.linspace(0.5, 2, 9), torch.arange(9)
    make = Augment(AugmentConfig(), 64, seed=3)
    views = make.two_views(images, aspect, ids, epoch=5)
    for i in range(9):
        alone = make.two_views(images[i : i + 1], aspect[i : i + 1], ids[i : i + 1], epoch=5)
        torch.testing.assert_close(views[[i, i + 9]], alone, rtol=0, atol=1e-5)


def test_zero_strength_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    config = AugmentConfig(crop_min=1.0, flip=0, jitter=0, grayscale=0)
    view = Augment(config, 32, 0).view(images, torch.ones(4), torch.arange(4), 0, 0)
    # no candidate of full area but another ratio fits, which leaves the whole image
    assert torch.allclose(view, centre(images, torch.ones(4), 32), atol=1e-5)


def test_centre_crops_the_short_side() -> None:
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    picture[..., 16:48] = 255  # the middle half of a squashed 2:1 image
    view = centre(picture, torch.tensor([2.0]), 32)
    white = augment.normalise(torch.ones(1, 3, 1, 1))
    assert torch.allclose(view[..., 2:-2], white.expand(1, 3, 32, 28), atol=0.05)


def test_compiles_without_graph_breaks() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    make = Augment(replace(AugmentConfig(), blur=0.5, solarize=0.2), 32, 0)
    u = uniforms(torch.arange(4), 0, 0, 0, DRAWS)
    compiled = torch.compile(make.apply, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images, torch.ones(4), u), make.apply(images, torch.ones(4), u))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_uniforms_compile_for_every_epoch() -> None:
    """With inductor's integers: an epoch becomes a symbol when it changes, and seeds are large."""
    ids = torch.arange(-3, 5) << 40
    torch._dynamo.reset()
    compiled = torch.compile(uniforms, fullgraph=True)
    for epoch in (0, 1, 2, 999):
        expected = uniforms(ids, 2**31 - 1, epoch, 1, 6)
        assert torch.equal(compiled(ids, 2**31 - 1, epoch, 1, 6), expected)


def test_uniforms_are_the_published_ones() -> None:
    """Stored runs resume in the middle of an epoch: the numbers may never change."""
    found = (uniforms(torch.tensor([0, -5, 2**62]), 7, 3, 1, 2) * 2**24).long()
    assert found.tolist() == [[1316140, 9043945], [11379731, 8828038], [8012652, 453493]]
