"""Methods of training, one per module: Cl-InfoNCE and those it is compared with. A new one is a
:class:`Method` decorated with ``@METHODS.add("NAME")``.

Data, views, encoder, optimiser, evaluation and export are the same for all. Shapes: b local images,
B images of the global batch, G granularities, A attributes, D dimensions.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wcl_ray.config import ModelConfig
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult

Needs = Literal["nothing", "label", "metadata", "prototypes"]
Outputs = tuple[Tensor, ...]


class LocalBatch(NamedTuple):
    """What a worker knows of its images besides what :meth:`Method.forward` returns.

    Attributes:
        clusters: int64 (b, G); -1: none.
        valid: bool (b,), false for images that cannot be decoded.
        attributes: float (b, A) of zeros and ones; A is 0 unless the method needs metadata.
        offset: index of the first local image in the global batch.
        temperature: of the configuration, > 0.
    """

    clusters: Tensor
    valid: Tensor
    attributes: Tensor
    offset: int
    temperature: float


class Method(nn.Module):
    """A method with its own modules, a part of the encoder in training but not of the export.

    Attributes:
        kind: the kind of its clusters; None: any.
        needs: what the numbers in ``sizes`` count: with ``label`` the classes, with ``metadata``
            the attributes, with ``prototypes`` the clusters of each granularity.
        projects: uses the embeddings; else the encoder has no projector.
    """

    kind: ClassVar[str | None] = None
    needs: ClassVar[Needs] = "nothing"
    projects: ClassVar[bool] = True

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, features: Tensor, embeddings: Outputs, attributes: Tensor) -> Outputs:
        """Inputs of :meth:`loss`; uses all parameters. With ``train.micro-batch-size`` it is called
        twice for each part of the batch, so images must not depend on each other here, nor may it
        change a buffer; outputs have one row for each image, or for each view.

        Args:
            features: (2b, feature_dim) of the backbone: view 1 of every image, then view 2.
            embeddings: (2b, D) of each projector, not normalised.
            attributes: float (b, A) of zeros and ones.
        """
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        """This worker's part of the loss, so that the mean over the workers is the loss of the
        global batch; in float32."""
        raise NotImplementedError

    def begin_round(self, clusters: np.ndarray) -> None:
        """Called on every worker with the clusters int32 (N, G) of a round before its first step,
        but not when it is resumed."""


class Classifier(Method):
    """A linear layer on the backbone's features; the output is its logits (2b, sizes[0])."""

    projects = False

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        self.classifier = nn.Linear(feature_dim, sizes[0])

    def forward(self, features: Tensor, embeddings: Outputs, attributes: Tensor) -> Outputs:
        return (self.classifier(features),)


class Preset(Method):
    """Cl-InfoNCE with one kind of clusters, see :func:`wcl_ray.train.loop.batch_loss`."""


def unit(x: Tensor) -> Tensor:
    """float32 rows of unit length."""
    return F.normalize(x.float(), dim=1)


def mean_loss(losses: Tensor, used: Tensor) -> LossResult:
    """The local part of the mean over the images of the global batch that are used.

    Args:
        losses: float (b,), finite. used: bool (b,).
    """
    all_used = gather(used.long())
    scale = len(all_used) / len(used) / all_used.sum().clamp(min=1)
    loss = torch.where(used, losses, 0.0).sum() * scale
    return LossResult(loss, torch.zeros_like(scale), torch.ones_like(scale))
