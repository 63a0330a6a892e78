"""Loading a trained encoder from Python."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from wcl_ray.config import DataConfig
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import centre_crops
from wcl_ray.model.encoder import load_exported
from wcl_ray.runs.trained import Trained

ImageFile = str | os.PathLike[str] | bytes | Image.Image


class ImageEncoder(nn.Module):
    """The backbone of a trained encoder, in eval mode.

    Attributes:
        image_size: s, side of the input images in pixels.
        feature_dim: F, width of the features.
    """

    def __init__(self, backbone: nn.Module, store_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size = int(backbone.image_size)  # type: ignore[arg-type]
        self.feature_dim = int(backbone.feature_dim)  # type: ignore[arg-type]
        self._store_size = store_size
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of prepared images: (B, 3, s, s) float, normalised → (B, F)."""
        features: torch.Tensor = self.backbone(images)
        return features

    def prepare(self, images: Sequence[ImageFile]) -> torch.Tensor:
        """Centre crops of images, as the evaluation takes them.

        Args:
            images: paths, contents of image files, or Pillow images.

        Returns:
            (B, 3, s, s) float, normalised, on the encoder's device.

        Raises:
            UserError: an image that cannot be read.
        """
        contents = [_content(image) for image in images]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            crops, faults = centre_crops(contents, self.image_size, self._store_size, pool)
        for row, reason in faults.items():
            image = images[row]
            name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {row}"
            raise UserError(f"{name} cannot be read: {reason}")
        return crops.to(next(self.parameters()).device)

    def encode(self, images: Sequence[ImageFile]) -> torch.Tensor:
        """Features of images: (B, F) float32, the same as ``jobs/embed.py`` writes."""
        crops = self.prepare(images)
        with torch.inference_mode():
            return self(crops).float()


def _content(image: ImageFile) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    return Path(image).read_bytes()


def load_encoder(run: str, endpoint: str | None = None) -> ImageEncoder:
    """Load the encoder of a run.

    Args:
        run: run folder, local or s3://, or an exported ``encoder.safetensors``.
        endpoint: URL of the S3 endpoint, for stores other than AWS.

    Raises:
        UserError: not a run, no trained encoder in it, or not an export of this project.
    """
    if Path(run).is_file():
        backbone = load_exported(run)
        size = int(backbone.image_size)  # type: ignore[arg-type]
        return ImageEncoder(backbone, DataConfig(image_size=size).stored_size)
    trained = Trained.open(run, endpoint)
    return ImageEncoder(load_exported(trained.weights), trained.config.data.stored_size)
