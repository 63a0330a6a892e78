"""Composes batches: pure functions on positions, without pixels.

A shuffled batch rarely holds two images of one small cluster, and Cl-InfoNCE without positives is
SimCLR. So an epoch is composed: m images of one cluster form a group, groups are in random order,
every image comes once. n: images of the epoch; N: all images; B: global batch size.
"""

from __future__ import annotations

import numpy as np

SIBLINGS = 4  # groups of one parent that follow each other


def compose(clusters: np.ndarray, group: int, rng: np.random.Generator) -> np.ndarray:
    """A random order with consecutive groups of images of one cluster.

    A cluster is cut at random into groups of ``group`` images. The rest forms a smaller group, but
    a rest of one image joins another group of its cluster, so that only singletons are alone.

    Args:
        clusters: int (n,); -1 = singleton. Or (n, 2), with the cluster of the level above: groups
            of one such parent follow each other, SIBLINGS at a time.
        group: m; 1 gives a plain random order.

    Returns:
        int64 (n,): a permutation of range(n).

    >>> order = compose(np.array([0, 1, 0, 1]), 2, np.random.default_rng(0))
    >>> np.array([0, 1, 0, 1])[order]  # partners are adjacent
    array([1, 1, 0, 0])
    """
    n = len(clusters)
    shuffled = rng.permutation(n)
    if group == 1 or n == 0:
        return shuffled
    finest = clusters if clusters.ndim == 1 else clusters[:, 0]
    order, starts, rank, size = _by_cluster(finest, shuffled)
    number = rank // group
    rest_of_one = (size % group == 1) & (size > group)
    number -= (rest_of_one & (rank == size - 1)).astype(number.dtype)
    first = np.ones(n, dtype=bool)
    first[1:] = (starts[1:] != starts[:-1]) | (number[1:] != number[:-1])
    group_of = np.cumsum(first) - 1
    if clusters.ndim == 1:
        group_rank = rng.permutation(int(group_of[-1]) + 1)
    else:
        group_rank = np.argsort(compose(clusters[order[first], 1], SIBLINGS, rng))
    return order[np.argsort(group_rank[group_of], kind="stable")]


def _by_cluster(
    clusters: np.ndarray, shuffled: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows sorted by cluster, shuffled within; and of each row the start of its cluster, its rank
    in the cluster, and the cluster's size."""
    n = len(clusters)
    key = clusters[shuffled].astype(np.int64)
    singleton = key < 0
    key[singleton] = key.max(initial=0) + 1 + np.arange(int(singleton.sum()))
    by_key = np.argsort(key, kind="stable")
    order, key = shuffled[by_key], key[by_key]
    first = np.ones(n, dtype=bool)
    first[1:] = key[1:] != key[:-1]
    begin = np.flatnonzero(first)
    lengths = np.diff(np.append(begin, n))
    starts = np.repeat(begin, lengths)
    return order, starts, np.arange(n) - starts, np.repeat(lengths, lengths)


def epoch_order(
    clusters: np.ndarray, group: int, batch: int, rng: np.random.Generator
) -> np.ndarray:
    """:func:`compose`, without groups split between batches if possible.

    Args:
        clusters: int (n,) or (n, 2), see :func:`compose`.
        batch: B; consecutive slices of this length are the global batches.

    Returns:
        int64 (n,): a permutation of range(n).
    """
    order = compose(clusters, group, rng)
    if group == 1:
        return order
    finest = clusters if clusters.ndim == 1 else clusters[:, 0]
    return order[_keep_whole(finest[order], batch)]


def _keep_whole(key: np.ndarray, batch: int) -> np.ndarray:
    """Permutation that moves single images to batch borders that would split a group.

    If a border falls inside a group, single images fill the batch and the group moves to the next
    one. If too few single images are left, the group is split.
    """
    n = len(key)
    key = key.astype(np.int64)
    same = np.zeros(n, dtype=bool)  # same group as the row before
    same[1:] = (key[1:] == key[:-1]) & (key[1:] >= 0)
    starts = np.flatnonzero(~same)
    lengths = np.diff(np.append(starts, n))
    singles = list(starts[lengths == 1][::-1])
    if not singles:
        return np.arange(n)
    pieces: list[np.ndarray] = []
    moved = np.zeros(n, dtype=bool)
    filled = at = 0
    while at < n:
        want = batch - filled % batch
        end = at + want + int(moved[at : at + want].sum())
        while end < n and (unmoved := int((~moved[at:end]).sum())) < want:
            end += want - unmoved
        take = np.arange(at, min(end, n))
        take = take[~moved[take]]
        at = min(end, n)
        if at < n and same[at] and len(take) == want:
            begin = int(starts[np.searchsorted(starts, at, side="right") - 1])
            cut = at - begin  # rows of the split group that are already in this batch
            spare: list[int] = []
            while singles and len(spare) < cut:
                candidate = int(singles.pop())
                if candidate >= at and not moved[candidate]:
                    spare.append(candidate)
            if len(spare) == cut:
                moved[spare] = True
                take = np.concatenate([take[: want - cut], np.array(spare, dtype=np.int64)])
                at = begin
        pieces.append(take)
        filled += len(take)
    return np.concatenate(pieces)


def composing_column(clusters: np.ndarray) -> tuple[int, str]:
    """The granularity that batches are composed by, and why, to show the user.

    The finest one in which at least half of the images have a partner: images of one fine cluster
    usually share coarse ones too. If there is none, the one in which most images have a partner.

    Args:
        clusters: int32 (N, G).
    """
    share, count = [], []
    for column in clusters.T:
        sizes = np.bincount(column[column >= 0])
        share.append(float(sizes[sizes > 1].sum()) / max(1, len(column)))
        count.append(int((sizes > 0).sum()))
    good = [g for g in range(len(share)) if share[g] >= 0.5]
    best = max(good, key=lambda g: count[g]) if good else int(np.argmax(share))
    return best, f"{count[best]:,} clusters, {share[best]:.0%} of the images have a partner"


def window_of(local: int) -> int:
    """Size of the window in which batches of ``local`` images are composed if blocks are streamed
    or dealt."""
    return max(8 * local, 4096)


def isolated_share(clusters: np.ndarray, window: int) -> float:
    """Share of the images with a partner that would meet none in a random window of images.

    For an image of a cluster of s among N images, all s - 1 partners are outside of its window of w
    images with a probability of about (1 - (w - 1) / (N - 1)) ** (s - 1).

    Args:
        clusters: int (N,); -1 = singleton.
        window: w.
    """
    sizes = np.bincount(clusters[clusters >= 0])
    sizes = sizes[sizes > 1]
    outside = 1 - min(1.0, (window - 1) / max(1, len(clusters) - 1))
    return float((sizes * outside ** (sizes - 1)).sum() / sizes.sum()) if len(sizes) else 0.0


def composing_columns(clusters: np.ndarray, siblings: bool) -> int | list[int]:
    """The column or columns of int32 (N, G) that :func:`compose` takes; ``siblings``: images are
    contrasted with those of the same cluster at the level above."""
    column, _ = composing_column(clusters)
    return [column, column - 1] if siblings and column else column


def without_siblings(clusters: np.ndarray, level: int, batch: int, group: int) -> float:
    """Share of the images with a cluster at the level above whose batch holds no image of another
    cluster of the level inside that one, in an epoch of batches.

    Args:
        clusters: int32 (N, G); -1 = none. level: from 1. batch: B. group: m.

    >>> fine = np.arange(96) // 12
    >>> without_siblings(np.stack([fine // 4, fine], 1), 1, batch=96, group=2)
    0.0
    """
    composing = clusters[:, composing_columns(clusters, siblings=True)]
    rows = clusters[epoch_order(composing, group, batch, np.random.default_rng(0))]
    step = np.arange(len(rows)) // batch
    fine, coarse = rows[:, level], rows[:, level - 1]
    in_parent, in_cluster = (_sizes_in_batch(step, column) for column in (coarse, fine))
    alone = in_parent == np.where(fine < 0, 1, in_cluster)
    return float(alone[coarse >= 0].mean()) if (coarse >= 0).any() else 0.0


def _sizes_in_batch(step: np.ndarray, column: np.ndarray) -> np.ndarray:
    """int64 (n,): rows of the same step with the same cluster (-1 counts as one)."""
    key = step * (column.max() + 2) + column + 1
    _, inverse = np.unique(key, return_inverse=True)
    return np.bincount(inverse)[inverse]


def meeting(batches: np.ndarray) -> tuple[float, float]:
    """Mean number of other-image positives per anchor in batches, and share of anchors without any.

    Args:
        batches: int (steps, B), the cluster of each image; -1 = singleton.

    >>> meeting(np.array([[0, 0, 0, -1]]))
    (1.5, 0.25)
    """
    positives = []
    for batch in batches:
        _, inverse, counts = np.unique(batch, return_inverse=True, return_counts=True)
        positives.append(np.where(batch < 0, 0, counts[inverse] - 1))
    flat = np.concatenate(positives) if positives else np.zeros(1)
    return float(flat.mean()), float((flat == 0).mean())


def empty_bits(n: int) -> np.ndarray:
    """uint8 (ceil(n / 8),): packed bits, none set."""
    return np.zeros((n + 7) // 8, dtype=np.uint8)


def set_bits(bits: np.ndarray, positions: np.ndarray) -> None:
    """Set positions in place."""
    np.bitwise_or.at(bits, positions >> 3, (1 << (positions & 7)).astype(np.uint8))


def count_bits(bits: np.ndarray | None) -> int:
    """Number of positions that are set; 0 for None."""
    return 0 if bits is None else int(np.unpackbits(bits).sum())


def has_bits(bits: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """bool like positions: whether each is set."""
    return ((bits[positions >> 3] >> (positions & 7).astype(np.uint8)) & 1).astype(bool)


def unset_positions(bits: np.ndarray | None, n: int) -> np.ndarray:
    """int64: the positions of range(n) that are not set."""
    if bits is None:
        return np.arange(n)
    return np.flatnonzero(np.unpackbits(bits, count=n, bitorder="little") == 0)
