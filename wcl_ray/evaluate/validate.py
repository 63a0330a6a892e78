"""How the encoders of a run are measured, during training and after it.

While training goes on, Ray Train runs :func:`validate` on a checkpoint as a task of its own.
"""

from __future__ import annotations

import functools
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.data import Dataset

from wcl_ray.config import Config
from wcl_ray.data.images import Images
from wcl_ray.data.stream import Stream
from wcl_ray.errors import find_user_error
from wcl_ray.evaluate.run import ExtraMetrics, evaluate_encoder, subset
from wcl_ray.model.encoder import build_encoder, save_export
from wcl_ray.storage import Folder
from wcl_ray.train.checkpoint import load_model

EVALUATIONS = "evaluations"  # folder of a run
SHOWN = ("knn", "probe", "metadata", "rank_me", "alignment", "uniformity", "feature_std")


@dataclass(frozen=True)
class Evaluator:
    """On what images an encoder is measured, and how.

    Attributes:
        counts: number of training and of test images, for the samples.
        kept: both as kept in the object store, with the label, instead of reading them anew.
        cpus: of each task; None: what the nodes have free.
        probe: also the linear probe.
        more: further figures from the embedded images.
    """

    images: Images
    counts: tuple[int, int]
    kept: tuple[Stream, Stream] | None = None
    cpus: float | None = None
    probe: bool = True
    more: ExtraMetrics | None = None

    def measure(self, weights: bytes, config: Config, gpu: bool) -> dict[str, Any]:
        """Figures of an exported encoder (see :func:`evaluate_encoder`)."""
        train, test = self._rows()
        most, cpus = config.evaluate.max_images, self.cpus or 1
        return evaluate_encoder(
            weights,
            subset(train, most, self.counts[0], config.seed, cpus),
            None if test is None else subset(test, most, self.counts[1], config.seed, cpus),
            label=self.images.label,
            store_size=config.data.stored_size,
            config=config.evaluate,
            seed=config.seed,
            gpu=gpu,
            cpus=self.cpus,
            probe=self.probe,
            more=self.more,
        )

    def _rows(self) -> tuple[Dataset, Dataset | None]:
        if self.kept is None:
            return self.images.train_images(), self.images.test_images()
        return self.kept[0].images(), self.kept[1].images()


def validation_config(
    config: Config, evaluator: Evaluator, queue: Any, run: Folder
) -> ray.train.ValidationConfig | None:
    """What Ray Train runs on checkpoints of every ``evaluate.every`` epochs; None when it is 0."""
    if not config.evaluate.every:
        return None
    task = functools.partial(validate, config=config, evaluator=evaluator, queue=queue, run=run)
    # the task itself only waits for others; a GPU would be taken from the workers
    remote = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    return ray.train.ValidationConfig(fn=task, ray_remote_kwargs=remote)


def validate(
    checkpoint: ray.train.Checkpoint,
    epoch: int,
    step: int,
    *,
    config: Config,
    evaluator: Evaluator,
    queue: Any,
    run: Folder,
) -> dict[str, Any]:
    """Measure a checkpoint on CPUs and push the figures to the metrics queue.

    The figures are also left in the run folder: once this returns, Ray Train does not ask for them
    again, though the driver may be gone before it reads the board (see :func:`tell_again`).

    Returns:
        The figures of SHOWN.
    """
    try:
        encoder = build_encoder(config.model, config.data.image_size, config.loss.dual)
        with checkpoint.as_directory() as folder:
            load_model(folder, encoder)
        weights = save_export(encoder, config.model, config.data.image_size)
        found = shown(evaluator.measure(weights, config, gpu=False))
    except Exception as error:  # training goes on, and Ray Train only logs it
        why = str(find_user_error(error) or f"{type(error).__name__}: {error}")
        text = f"no evaluation after epoch {epoch}: {why.splitlines()[0]}"
        queue.push.remote({"kind": "warning", "text": text})
        raise
    row = {"kind": "evaluation", "epoch": epoch, "step": step, **found}
    with suppress(OSError):
        (run / EVALUATIONS).write(f"{step:08d}.json", json.dumps(row).encode())
    queue.push.remote(row)
    return found


def tell_again(queue: Any, run: Folder) -> None:
    """Push the evaluations before a restart; those that are known are passed over."""
    there = run / EVALUATIONS
    for name in there.names():
        queue.push.remote(json.loads(there.read(name)))


def shown(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that are logged during training."""
    return {key: float(figures[key]) for key in SHOWN if key in figures}
