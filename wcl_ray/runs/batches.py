"""The stream of a run: which images are put together in batches, and how they are kept for that."""

from __future__ import annotations

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import DataConfig, ScaleConfig
from wcl_ray.data import sampler
from wcl_ray.data.images import Images
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.runs.capacity import capacity, plan_scale
from wcl_ray.runs.folder import add_faults
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

APART = 0.5  # share of images without a partner in reach above which a run warns


def stream_images(
    images: Images,
    assignment: Assignment,
    run: Folder,
    *,
    data: DataConfig,
    scale: ScaleConfig,
    batch_size: int,
    samples_per_cluster: int,
) -> Stream:
    """Keep the training images in the object store, or have them read each epoch.

    The object store does not outlive the job, so that this is done at every start; images that
    cannot be read are listed in the run folder.

    Raises:
        UserError: see :func:`wcl_ray.data.stream.plan_stream`; fewer images than a batch.
    """
    column = say_batches(assignment, samples_per_cluster)
    stream = deal_images(images, assignment, column, data, scale)
    say("stream", stream.reason)
    if stream.mode == "streaming" and samples_per_cluster > 1:
        workers = plan_scale(scale, batch_size, beside=True).most
        warn_apart(assignment.clusters[:, column], batch_size // workers)
    if stream.faults:
        listed = add_faults(run, list(stream.faults))
        say("faults", f"{listed} unreadable images are left out, see {run.uri}/faults.jsonl")
    if stream.rows < batch_size:
        raise UserError(
            f"only {stream.rows} of {len(assignment.ids)} training images were found and can be "
            f"read, fewer than train.batch-size {batch_size}"
        )
    return stream


def deal_images(
    images: Images, assignment: Assignment, column: int, data: DataConfig, scale: ScaleConfig
) -> Stream:
    """The stream; where its blocks lie on several nodes they are dealt by one granularity.

    Args:
        column: of that granularity.
    """
    rows, grows = images.train.images(), capacity(scale).grows
    return plan_stream(rows, assignment.ids, data, assignment.clusters[:, column], grows)


def say_batches(assignment: Assignment, samples_per_cluster: int) -> int:
    """Print by which granularity batches are composed; returns its column."""
    column, reason = sampler.composing_column(assignment.clusters)
    if samples_per_cluster > 1 and (assignment.clusters >= 0).any():
        name = assignment.names[column]
        say("batches", f"groups of {samples_per_cluster} from {name}: {reason}")
    return column


def warn_apart(clusters: np.ndarray, batch: int) -> None:
    """Say so when clusters are too small for images read in the order of their files.

    Args:
        clusters: int32 (N,).
        batch: images of a batch on one worker.
    """
    window = sampler.window_of(batch)
    share = sampler.isolated_share(clusters, window)
    if share > APART:
        warn(
            f"streamed images are composed among {window:,} at a time; {share:.0%} of "
            "those with a partner will meet none there, unless the files are sorted by cluster: "
            "make the clusters coarser, or let the images be kept (data.keep; more memory, smaller "
            "data.image-size)"
        )
