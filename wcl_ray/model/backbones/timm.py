"""timm's models, as timm:NAME."""

from __future__ import annotations

import difflib

from torch import nn

from wcl_ray.errors import UserError
from wcl_ray.registry import BACKBONES


@BACKBONES.add("timm")
def build(name: str, image_size: int) -> nn.Module:
    """A model without weights.

    Raises:
        UserError: an unknown name (suggests the nearest names), or timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError('timm is not installed: pip install "wcl_ray[timm]"') from None
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(f"timm has no model {name!r}; similar names: {', '.join(near) or 'none'}")
    options = {"pretrained": False}
    try:
        return timm.create_model(name, img_size=image_size, **options)  # type: ignore[no-any-return]
    except TypeError:  # fully convolutional models take any size
        return timm.create_model(name, **options)  # type: ignore[no-any-return]
