"""SwAV: swapped prediction of prototype assignments (Caron et al., NeurIPS 2020).

Equations 1 to 5: Sinkhorn-Knopp splits the global batch evenly among the prototypes
(``--clusters.k``), and each view predicts the assignment of the other. Simplified: two views of
full size (no multi-crop), no queue of earlier images, prototypes are trained from the first step,
and ε is 0.03 instead of 0.05. By default there is a prototype for every 50 images, but no more than
images in a batch. The paper's temperature is 0.1 (``--loss.temperature 0.1``), not the default 0.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wcl_ray.config import ModelConfig
from wcl_ray.model.gather import gather
from wcl_ray.model.loss import LossResult
from wcl_ray.model.methods import LocalBatch, Method, Outputs, mean_loss, unit
from wcl_ray.registry import METHODS

# of the entropy regularisation. At the paper's 0.05 the loss of short runs may stay at ln K, the
# trivial solution; its authors then advise 0.03
EPSILON = 0.03
ITERATIONS = 3


@METHODS.add("swav")
class SwAV(Method):
    """Batches are shuffled images."""

    kind = "instance"
    needs = "prototypes"

    def __init__(self, feature_dim: int, model: ModelConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(feature_dim, model, sizes)
        self.prototypes = nn.Parameter(unit(torch.randn(sizes[0], model.projector[-1])))

    def forward(self, features: Tensor, embeddings: Outputs, attributes: Tensor) -> Outputs:
        with torch.autocast(features.device.type, enabled=False):
            return (unit(embeddings[0]) @ unit(self.prototypes).T,)  # (2b, K)

    def loss(self, outputs: Outputs, batch: LocalBatch) -> LossResult:
        scores = outputs[0].chunk(2)
        all_valid = gather(batch.valid.long()) > 0
        local = slice(batch.offset, batch.offset + len(batch.valid))
        q1, q2 = (sinkhorn(gather(s.detach()), all_valid)[local] for s in scores)
        p1, p2 = (F.log_softmax(s / batch.temperature, dim=1) for s in scores)
        losses = -(q1 * p2 + q2 * p1).sum(1) / 2
        return mean_loss(losses, batch.valid)


def sinkhorn(scores: Tensor, valid: Tensor) -> Tensor:
    """Soft assignments (B, K) of valid images to prototypes in equal parts; rows sum to 1, those of
    invalid images to 0.

    Args:
        scores: float (B, K), cosine similarities. valid: bool (B,).
    """
    q, tiny = torch.exp(scores / EPSILON) * valid[:, None], torch.finfo(scores.dtype).tiny
    for _ in range(ITERATIONS):
        q = q / q.sum(0).clamp(min=tiny)  # every prototype has the same mass
        q = q / q.sum(1, keepdim=True).clamp(min=tiny)
    return q
