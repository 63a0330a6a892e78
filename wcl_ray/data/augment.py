"""Two random views of a batch on the device, with separate parameters for every image.

Plain torch, no Ray. Shapes: B images, S stored side, s output side.

Every random number is a hash of (seed, epoch, image id, view): a view does not depend on the
worker, the index in the batch or the number of workers, and a resumed run needs no random state.

The order of the colour changes is fixed (brightness, contrast, saturation, hue); torchvision
shuffles it. Crops are sampled in the geometry of the original image, although it is stored squashed
to a square: ``aspect`` (width / height) undoes the squashing.
"""

from __future__ import annotations

import math

import torch

from wcl_ray.config import AugmentConfig

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TRIES = 10  # candidate crops, as in torchvision's RandomResizedCrop
RATIO = (3 / 4, 4 / 3)
DRAWS = 2 * TRIES + 12
GREY = (0.2989, 0.587, 0.114)
# values of uint8 images that are augmented at once: what fits in the cache, and, on a GPU, what
# takes little memory beside the encoder's activations
CPU_VALUES, GPU_VALUES = 2**20, 2**27


def normalise(x: torch.Tensor) -> torch.Tensor:
    """Normalise (B, 3, s, s) in [0, 1] by ImageNet's mean and standard deviation."""
    mean = torch.tensor(MEAN, device=x.device, dtype=x.dtype)[:, None, None]
    return (x - mean) / torch.tensor(STD, device=x.device, dtype=x.dtype)[:, None, None]


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Finaliser of splitmix64 on int64 (wrapping); masks make the right shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniforms(ids: torch.Tensor, seed: int, epoch: int, view: int, count: int) -> torch.Tensor:
    """Independent uniform numbers per image, by hashing.

    Args:
        ids: int64 (B,).

    Returns:
        float32 (B, count) in [0, 1).
    """
    golden = -0x61C8864680B583EB
    # A tensor, so that the product wraps. When compiled, the epoch is a symbol, and inductor would
    # compute the product without bounds; the first mask changes no bit, but prevents that.
    mask = (1 << 62) - 1
    key = torch.full((), (seed * 1_000_003 + epoch) * 8 + view + 1, device=ids.device) & mask
    state = _mix(_mix(ids + golden) + ((key * 0x632BE59BD9B4E019) & mask))
    steps = torch.arange(1, count + 1, device=ids.device) * golden
    return ((_mix(state[:, None] + steps) >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def crop_boxes(u: torch.Tensor, aspect: torch.Tensor, crop_min: float) -> torch.Tensor:
    """Boxes of random resized crops, as shares of width and height.

    The first of ten candidates (area uniform in [crop_min, 1], ratio log-uniform in [3/4, 4/3])
    that fits in the original image; else the largest centre crop with a ratio in range.

    Args:
        u: float (B, 2·TRIES + 2) uniforms.
        aspect: float (B,), width / height of the originals.

    Returns:
        float (B, 4): left, top, right, bottom in [0, 1].
    """
    area = (crop_min + (1 - crop_min) * u[:, :TRIES]) * aspect[:, None]  # image is aspect × 1
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    width, height = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
    fits = (width <= aspect[:, None] + 1e-6) & (height <= 1 + 1e-6)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    fallback_ratio = aspect.clamp(*RATIO)
    fallback_w = torch.minimum(aspect, fallback_ratio)
    fallback_h = torch.minimum(torch.ones_like(aspect), aspect / fallback_ratio)
    any_fits = fits.any(dim=1)
    w = torch.where(any_fits, width.gather(1, first)[:, 0], fallback_w).minimum(aspect) / aspect
    h = torch.where(any_fits, height.gather(1, first)[:, 0], fallback_h).clamp(max=1)
    left = torch.where(any_fits, u[:, 2 * TRIES], 0.5) * (1 - w)
    top = torch.where(any_fits, u[:, 2 * TRIES + 1], 0.5) * (1 - h)
    return torch.stack([left, top, left + w, top + h], dim=1)


def _weights(low: torch.Tensor, high: torch.Tensor, source: int, out: int) -> torch.Tensor:
    """Weights (B, out, source) of an antialiased linear resize of the range [low, high] pixels."""
    scale = (high - low) / out
    support = scale.clamp(min=1)[:, None, None]
    pixel = torch.arange(source, device=low.device, dtype=low.dtype) + 0.5
    out_pixel = torch.arange(out, device=low.device, dtype=low.dtype) + 0.5
    centre = low[:, None] + out_pixel * scale[:, None]
    weight = (1 - (pixel - centre[:, :, None]).abs() / support).clamp(min=0)
    inside = (pixel + 0.5 > low[:, None] + 1e-4) & (pixel - 0.5 < high[:, None] - 1e-4)
    weight = weight * inside[:, None, :]
    return weight / weight.sum(2, keepdim=True).clamp(min=1e-8)


def resized_crop(
    x: torch.Tensor, boxes: torch.Tensor, size: int, flip: torch.Tensor | None = None
) -> torch.Tensor:
    """Crop each image by its box and resize it with antialiasing, as two batched products.

    For boxes on pixel borders this equals torchvision's ``resized_crop(antialias=True)``.

    Args:
        x: float (B, 3, S, S).
        boxes: float (B, 4) left, top, right, bottom as shares of the side.
        flip: bool (B,), images to mirror.

    Returns:
        float (B, 3, size, size).
    """
    side = x.shape[-1]
    rows = _weights(boxes[:, 1] * side, boxes[:, 3] * side, side, size)
    columns = _weights(boxes[:, 0] * side, boxes[:, 2] * side, side, size)
    if flip is not None:
        columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None].to(x.dtype) @ x @ columns[:, None].transpose(2, 3).to(x.dtype)


def grayscale(x: torch.Tensor) -> torch.Tensor:
    """Luma (B, 1, s, s) of (B, 3, s, s)."""
    r, g, b = x.unbind(1)
    return (GREY[0] * r + GREY[1] * g + GREY[2] * b)[:, None]


def _blend(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    factor = factor[:, None, None, None]
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale (B, 3, s, s) by factor (B,), clamped to [0, 1]."""
    return (x * factor[:, None, None, None]).clamp(0, 1)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move (B, 3, s, s) away from each image's mean luma by factor (B,)."""
    return _blend(x, grayscale(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move (B, 3, s, s) away from its grey version by factor (B,)."""
    return _blend(x, grayscale(x), factor)


def hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Rotate the hue (HSV) of (B, 3, s, s) by turn (B,), in full turns of the colour circle."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    r, g, b = x.unbind(1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    angle = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sixth = angle + 6 * turn[:, None, None]
    # channel n of HSV → RGB is value - chroma · clamp(min(k, 4 - k), 0, 1), k = (n + 6h) mod 6
    n = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype)[:, None, None]
    k = torch.remainder(n + sixth[:, None], 6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B, 3, s, s), sigma (B,) in pixels; the kernel spans about 10 % of s."""
    batch, channels, side, _ = x.shape
    half = max(1, side // 20)
    offsets = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = x.reshape(1, batch * channels, side, side)
    flat = torch.nn.functional.pad(flat, (half, half, half, half), mode="reflect")
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    flat = torch.nn.functional.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return flat.reshape(x.shape)


def solarize(x: torch.Tensor) -> torch.Tensor:
    """Invert all values from one half up."""
    return torch.where(x >= 0.5, 1 - x, x)


class Augment:
    """Random views by the parameters of a configuration.

    Args:
        image_size: s, side of the views.
        seed: of the run.
        compile: compile all but the draws: Triton rejects the 64-bit constants of their hash
            (torch 2.11).
    """

    def __init__(
        self, config: AugmentConfig, image_size: int, seed: int, compile: bool = False
    ) -> None:
        self.config, self.size, self.seed = config, image_size, seed
        self._apply = torch.compile(self.apply) if compile else self.apply

    def plain(self) -> Augment:
        """The same views, not compiled."""
        return Augment(self.config, self.size, self.seed)

    def boxes(self, ids: torch.Tensor, aspect: torch.Tensor, epoch: int) -> torch.Tensor:
        """float (B, 2, 4): the crops that the two views show, see :func:`crop_boxes`."""
        draws = [uniforms(ids, self.seed, epoch, view, 2 * TRIES + 2) for view in (0, 1)]
        return torch.stack([crop_boxes(u, aspect, self.config.crop_min) for u in draws], dim=1)

    def view(
        self,
        images: torch.Tensor,
        aspect: torch.Tensor | None,
        ids: torch.Tensor,
        epoch: int,
        view: int,
    ) -> torch.Tensor:
        """One view: uint8 (B, 3, S, S), aspect (B,), int64 ids (B,) → normalised (B, 3, s, s).

        If ``aspect`` is None, the images have been cropped by :meth:`boxes`.
        """
        u = uniforms(ids, self.seed, epoch, view, DRAWS)
        return self._apply(images, aspect, u)

    def apply(
        self, images: torch.Tensor, aspect: torch.Tensor | None, u: torch.Tensor
    ) -> torch.Tensor:
        """The view defined by the uniforms u (B, DRAWS); see :meth:`view`."""
        c = self.config
        v = u[:, 2 * TRIES + 2 :]
        x, flip = images.to(torch.float32) / 255, v[:, 0] < c.flip
        if aspect is None:
            x = torch.where(flip[:, None, None, None], x.flip(3), x)
        else:
            boxes = crop_boxes(u[:, : 2 * TRIES + 2], aspect, c.crop_min)
            x = resized_crop(x, boxes, self.size, flip)
        if c.jitter > 0 and c.jitter_strength > 0:
            x = self._jitter(x, v)
        if c.grayscale > 0:
            x = torch.where((v[:, 6] < c.grayscale)[:, None, None, None], grayscale(x), x)
        if c.blur > 0:
            soft = blur(x, 0.1 + 1.9 * v[:, 8])
            x = torch.where((v[:, 7] < c.blur)[:, None, None, None], soft, x)
        if c.solarize > 0:
            x = torch.where((v[:, 9] < c.solarize)[:, None, None, None], solarize(x), x)
        return normalise(x)

    def _jitter(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # the strength of images without jitter is 0: factors of 1 and no turn
        strength = self.config.jitter_strength * (v[:, 1] < self.config.jitter).to(x.dtype)
        change = strength[:, None] * (2 * v[:, 2:6] - 1)
        x = brightness(x, 1 + 0.8 * change[:, 0])
        x = contrast(x, 1 + 0.8 * change[:, 1])
        x = saturation(x, 1 + 0.8 * change[:, 2])
        return hue(x, 0.2 * change[:, 3])

    def two_views(
        self, images: torch.Tensor, aspect: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> torch.Tensor:
        """Both views, stacked: (2B, 3, s, s), the first B are view 1.

        Args:
            images: uint8 (B, 3, S, S), or (B, 2, 3, s, s): the crop of each view.
        """
        cropped = images.ndim == 5
        views = images.unbind(1) if cropped else (images, images)
        most = GPU_VALUES if images.is_cuda else CPU_VALUES
        parts = max(1, min(len(ids), -(-views[0].numel() // most)))
        if images.is_cuda and parts == 1:  # one pass launches half as many kernels
            draws = [uniforms(ids, self.seed, epoch, view, DRAWS) for view in (0, 1)]
            both = torch.cat(views)
            return self._apply(both, None if cropped else aspect.repeat(2), torch.cat(draws))
        made = []
        for view in (0, 1):
            columns = (x.tensor_split(parts) for x in (views[view], aspect, ids))
            for images_n, aspect_n, ids_n in zip(*columns, strict=True):
                shown = None if cropped else aspect_n
                made.append(self.view(images_n, shown, ids_n, epoch, view))
        return torch.cat(made)


def centre_boxes(aspect: torch.Tensor, size: int) -> torch.Tensor:
    """float (B, 4): the centre crop of the evaluation, see :func:`crop_boxes`.

    Above 64 pixels the short side is 8/7 of ``size`` before the crop, as usual; smaller images keep
    all of their short side.
    """
    keep = 1.0 if size <= 64 else 7 / 8
    w = keep * (1 / aspect).clamp(max=1)
    h = keep * aspect.clamp(max=1)
    return torch.stack([0.5 - w / 2, 0.5 - h / 2, 0.5 + w / 2, 0.5 + h / 2], dim=1)


def centre(images: torch.Tensor, aspect: torch.Tensor, size: int) -> torch.Tensor:
    """The evaluation view: a centre crop of the original, resized and normalised.

    Args:
        images: uint8 (B, 3, S, S), squashed; aspect: float (B,).

    Returns:
        float (B, 3, size, size).
    """
    boxes = centre_boxes(aspect, size)
    return normalise(resized_crop(images.to(torch.float32) / 255, boxes, size).clamp(0, 1))
