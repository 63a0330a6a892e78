"""The image stream of a run: how its images are kept, and how its batches are composed."""

from __future__ import annotations

import numpy as np

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.config import DataConfig, ScaleConfig
from wcl_ray.data import sampler
from wcl_ray.data.images import Images
from wcl_ray.data.pixels import cpus_for_decoding
from wcl_ray.data.shards import partners_together, read_placement
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.runs.capacity import capacity, plan_scale
from wcl_ray.runs.folder import add_faults
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

MAX_APART = 0.5  # a run warns when a larger share of the images has no partner within reach


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
    """Keep the training images in the object store, or read them again in each epoch.

    The object store does not outlive the job, so this is done at every start. Unreadable images
    are listed in the run folder.

    Raises:
        UserError: see :func:`wcl_ray.data.stream.plan_stream`; fewer images than a batch.
    """
    column = say_batches(assignment, samples_per_cluster)
    stream = deal_images(images, assignment, column, data, scale)
    say("stream", stream.reason)
    if stream.mode == "streaming":
        plan = plan_scale(scale, batch_size, data_tasks=True, decoding=stream.decoded_when_read)
        by_workers = plan.gpu and not stream.decoded_when_read
        if by_workers and (cpus := cpus_for_decoding(plan.max_workers, plan.cpus)):
            say("stream", f"images are decoded on the {cpus:g} CPUs of nodes without GPUs")
        if samples_per_cluster > 1:
            say_partners(images, assignment, column, batch_size // plan.max_workers)
    if stream.faults:
        count = add_faults(run, list(stream.faults))
        say("faults", f"{count} unreadable images are left out, see {run.uri}/faults.jsonl")
    if stream.rows < batch_size:
        raise UserError(
            f"only {stream.rows} of {len(assignment.ids)} training images were found and can be "
            f"read, fewer than train.batch-size {batch_size}"
        )
    return stream


def deal_images(
    images: Images, assignment: Assignment, column: int, data: DataConfig, scale: ScaleConfig
) -> Stream:
    """Plan the stream; blocks on several nodes are dealt by one granularity.

    Args:
        column: of that granularity in ``assignment``.
    """
    clusters, grows = assignment.clusters[:, column], capacity(scale).grows
    return plan_stream(images.train, assignment.ids, data, clusters, grows)


def say_batches(assignment: Assignment, samples_per_cluster: int) -> int:
    """Print which granularity batches are composed by; returns its column."""
    column, reason = sampler.composing_column(assignment.clusters)
    if samples_per_cluster > 1 and (assignment.clusters >= 0).any():
        name = assignment.names[column]
        say("batches", f"groups of {samples_per_cluster} from {name}: {reason}")
    return column


def say_partners(images: Images, assignment: Assignment, column: int, batch: int) -> None:
    """Print or warn whether streaming brings images of a cluster together.

    Args:
        column: of the granularity that batches are composed by. batch: see :func:`warn_apart`.
    """
    clusters = assignment.clusters[:, column]
    placement = read_placement(images.train.files) if (clusters >= 0).any() else None
    if placement is None:
        warn_apart(clusters, batch)
        return
    share, alone = partners_together(clusters, placement.groups_of(assignment.ids))
    text = (
        f"{share:.0%} of the partners of an image lie in its part of a shard; {alone:.0%} of the "
        "images with a partner have none there"
    )
    if alone > MAX_APART:
        warn(f"{text}; prepare the images again with these clusters, or with a larger --part")
    else:
        say("shards", text)


def warn_apart(clusters: np.ndarray, batch: int) -> None:
    """Warn if streaming seldom brings images of a cluster together: it does not look for them.

    Args:
        clusters: int32 (N,).
        batch: images per batch on one worker.
    """
    window = sampler.window_of(batch)
    share = sampler.isolated_share(clusters, window)
    if share > MAX_APART:
        warn(
            f"streaming composes batches from {window:,} images at a time: {share:.0%} of those "
            "with a partner will meet none, unless the files are sorted by cluster; "
            "jobs/prepare.py writes them so; or make the clusters coarser, or keep the images "
            "(data.keep, with more memory or a smaller data.image-size)"
        )
