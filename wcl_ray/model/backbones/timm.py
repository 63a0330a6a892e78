"""timm's models, as timm:NAME or timm:NAME.TAG; the tag names weights that timm publishes."""

from __future__ import annotations

import difflib

from torch import nn

from wcl_ray.errors import UserError
from wcl_ray.registry import BACKBONES


@BACKBONES.add("timm")
def build(
    name: str, image_size: int, pretrained: bool = False, drop_path: float | None = None
) -> nn.Module:
    """A model, randomly initialised, or in its own size with the weights that timm publishes.

    Raises:
        UserError: an unknown name (suggests the nearest names), timm is not installed, there are
            no weights, or the network has no stochastic depth.
    """
    try:
        import timm
    except ImportError:
        raise UserError('timm is not installed: pip install "wcl_ray[timm]"') from None
    known = timm.list_pretrained() if "." in name else timm.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise UserError(f"timm has no model {name!r}; similar names: {', '.join(near) or 'none'}")
    if pretrained:
        if not timm.is_model_pretrained(name):
            raise UserError(f"model.weights pretrained: timm publishes no weights of {name}")
        return timm.create_model(name, pretrained=True)  # type: ignore[no-any-return]
    options = {} if drop_path is None else {"drop_path_rate": drop_path}
    try:
        return timm.create_model(name, img_size=image_size, **options)  # type: ignore[no-any-return]
    except TypeError:  # fully convolutional models take any size
        pass
    try:
        return timm.create_model(name, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise UserError(f"model.drop-path: timm's {name} has no stochastic depth") from None
