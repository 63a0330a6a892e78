"""How the encoders of a run are measured, during training and after it.

During training, Ray Train runs :func:`validate` on checkpoints, each in a task.
"""

from __future__ import annotations

import functools
import json
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.data import Dataset

from wcl_ray.config import EvaluateConfig
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import kept_rows
from wcl_ray.data.split import sample
from wcl_ray.data.stream import Stream
from wcl_ray.errors import find_user_error
from wcl_ray.evaluate.choice import ExampleChoice
from wcl_ray.evaluate.run import ExtraMetrics, evaluate_encoder
from wcl_ray.model.encoder import EncoderSpec
from wcl_ray.storage import Folder
from wcl_ray.train.checkpoint import trained_encoder

EVALUATIONS = "evaluations"  # folder of a run
LOGGED = ("knn", "probe", "metadata", "rank_me", "alignment", "uniformity", "feature_std")


@dataclass(frozen=True)
class Evaluator:
    """The images that encoders are measured on, and how.

    Attributes:
        encoder: specification of the encoders of checkpoints.
        counts: number of training and of test images, for sampling.
        store_size: side of kept images, in pixels.
        kept: training and test images with labels in the object store; None: read them again.
        cpus, probe, extra_metrics, examples: see :func:`evaluate_encoder`.
    """

    encoder: EncoderSpec
    images: Images
    counts: tuple[int, int]
    config: EvaluateConfig
    store_size: int
    seed: int
    kept: tuple[Stream, Stream] | None = None
    cpus: float | None = None
    probe: bool = True
    extra_metrics: ExtraMetrics | None = None
    examples: ExampleChoice | None = None

    def measure(self, weights: bytes, gpu: bool) -> dict[str, Any]:
        """Figures of an exported encoder (see :func:`evaluate_encoder`)."""
        train, test = self._rows()
        return evaluate_encoder(
            weights,
            train,
            test,
            label=self.images.label,
            store_size=self.store_size,
            config=self.config,
            seed=self.seed,
            gpu=gpu,
            cpus=self.cpus,
            probe=self.probe,
            extra_metrics=self.extra_metrics,
            examples=self.examples,
        )

    def _rows(self) -> tuple[Dataset, Dataset | None]:
        """A sample of the training and the test images."""
        samples = [sample(self.config.max_images, count, self.seed) for count in self.counts]
        if self.kept is None:
            return self.images.train_images(samples[0]), self.images.test_images(samples[1])
        kept = zip(self.kept, samples, strict=True)
        train, test = (kept_rows(side.images(), chosen, self.cpus or 1) for side, chosen in kept)
        return train, test


def validation_config(
    evaluator: Evaluator, queue: Any, run: Folder
) -> ray.train.ValidationConfig | None:
    """Have Ray Train validate checkpoints every ``evaluate.every`` epochs; None if that is 0."""
    if not evaluator.config.every:
        return None
    task = functools.partial(validate, evaluator=evaluator, queue=queue, run=run)
    # the task only waits for others; a GPU would be taken from the workers
    remote = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
    return ray.train.ValidationConfig(fn=task, ray_remote_kwargs=remote)


def validate(
    checkpoint: ray.train.Checkpoint,
    epoch: int,
    step: int,
    *,
    evaluator: Evaluator,
    queue: Any,
    run: Folder,
) -> dict[str, Any]:
    """Measure a checkpoint on CPUs and push the figures to the metrics queue.

    The figures are also written to the run folder: Ray Train does not validate a checkpoint twice,
    but the driver may be gone before it reads the queue (see :func:`push_evaluations`).

    Returns:
        The figures of LOGGED.
    """
    _be_cancellable()
    try:
        encoder = trained_encoder(evaluator.encoder, checkpoint)
        figures = logged_figures(evaluator.measure(evaluator.encoder.export(encoder), gpu=False))
    except Exception as error:  # training continues, and Ray Train only logs it
        reason = str(find_user_error(error) or f"{type(error).__name__}: {error}")
        text = f"no evaluation after epoch {epoch}: {reason.splitlines()[0]}"
        queue.push.remote({"kind": "warning", "text": text})
        raise
    row = {"kind": "evaluation", "epoch": epoch, "step": step, **figures}
    with suppress(OSError):
        (run / EVALUATIONS).write(f"{step:08d}.json", json.dumps(row).encode())
    queue.push.remote(row)
    return figures


def _be_cancellable() -> None:
    """Let Ray cancel this task, which it does by SIGINT: a job that a shell starts in the
    background ignores it, and so do all its processes."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def push_evaluations(queue: Any, run: Folder) -> None:
    """Push stored evaluations again after a restart; the reader ignores those it knows."""
    folder = run / EVALUATIONS
    for name in folder.names():
        queue.push.remote(json.loads(folder.read(name)))


def logged_figures(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that are logged during training."""
    return {key: float(figures[key]) for key in LOGGED if key in figures}
