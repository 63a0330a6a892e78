"""Quality of clusters before any training: information measures and positives per anchor.

Z is the cluster of an image, T its label. A clustering helps if I(Z;T) is high and H(Z|T) low; both
rise with granularity (Tsai et al., ICLR 2022, section 4). All in bits. Small clusters determine the
label by chance, and singletons do completely, so clusterings are compared by I(Z;T) minus its
expectation for random clusters of the same sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wcl_ray.terminal import table


@dataclass(frozen=True)
class Quality:
    """Measures of one granularity. An image without a cluster counts as a cluster of its own.

    Attributes:
        clusters: K. images: N.
        h_z, h_t, i_zt, h_z_t, h_t_z: H(Z), H(T), I(Z;T), H(Z|T), H(T|Z) in bits; all but H(Z) are
            None without labels, and leave out images without one.
        i_zt_adjusted: I(Z;T) minus its mean over all ways to shuffle the images among the clusters;
            0 = chance.
        singles: share of the images that are singletons.
        pair_precision: share of the pairs within clusters that share a label; None without labels
            or pairs.
        sizes: 10th, 50th and 90th percentile and maximum of the cluster sizes.
        shuffled_positives, shuffled_lonely: expected number of other images of its cluster that an
            anchor meets in a random batch, and share of anchors that meet none.
        composed_positives, composed_lonely: the same in batches composed of groups of m.
    """

    name: str
    images: int
    clusters: int
    h_z: float
    h_t: float | None
    i_zt: float | None
    i_zt_adjusted: float | None
    h_z_t: float | None
    h_t_z: float | None
    singles: float
    pair_precision: float | None
    sizes: tuple[int, int, int, int]
    shuffled_positives: float
    shuffled_lonely: float
    composed_positives: float
    composed_lonely: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def entropy(counts: np.ndarray) -> float:
    """Entropy, in bits, of a distribution given by counts."""
    counts = counts[counts > 0].astype(np.float64)
    if len(counts) == 0:
        return 0.0
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0


def measure(
    name: str, clusters: np.ndarray, labels: np.ndarray | None, batch: int, group: int
) -> Quality:
    """Measure one granularity.

    Args:
        clusters: int (N,); -1 = singleton.
        labels: int (N,) or None; -1 = missing.
        batch: B, global batch size.
        group: m, images of a cluster in each group of a batch.
    """
    z = separate(clusters)
    sizes = np.bincount(z)
    n = len(z)
    with_labels: dict[str, float | None] = dict.fromkeys(
        ("h_t", "i_zt", "i_zt_adjusted", "h_z_t", "h_t_z", "pair_precision")
    )
    if labels is not None and (labels >= 0).any():
        with_labels = _label_measures(z[labels >= 0], labels[labels >= 0])
    shuffled = shuffled_positives(sizes, min(batch, n))
    composed = composed_positives(sizes, group, min(batch, n)) if group > 1 else shuffled
    p10, p50, p90 = np.percentile(sizes, [10, 50, 90]).astype(int)
    return Quality(
        name=name,
        images=n,
        clusters=len(sizes),
        h_z=entropy(sizes),
        singles=float((sizes == 1).sum() / n),
        sizes=(int(p10), int(p50), int(p90), int(sizes.max())),
        shuffled_positives=shuffled[0],
        shuffled_lonely=shuffled[1],
        composed_positives=composed[0],
        composed_lonely=composed[1],
        **with_labels,
    )


def separate(clusters: np.ndarray) -> np.ndarray:
    """Clusters numbered without gaps, with every -1 as a cluster of its own."""
    z = clusters.astype(np.int64)
    singleton = z < 0
    z[singleton] = z.max(initial=-1) + 1 + np.arange(int(singleton.sum()))
    return np.unique(z, return_inverse=True)[1]


def _label_measures(z: np.ndarray, t: np.ndarray) -> dict[str, float | None]:
    joint = np.unique(z * (int(t.max()) + 1) + t, return_counts=True)[1]
    clusters, classes = np.bincount(z), np.bincount(t)
    h_z, h_t, h_joint = entropy(clusters), entropy(classes), entropy(joint)
    information = max(0.0, h_z + h_t - h_joint)
    same_label = float((joint * (joint - 1.0)).sum())
    pairs = float((clusters * (clusters - 1.0)).sum())
    return {
        "h_t": h_t,
        "i_zt": information,
        "i_zt_adjusted": information - expected_information(clusters, classes),
        "h_z_t": max(0.0, h_joint - h_t),
        "h_t_z": max(0.0, h_joint - h_z),
        "pair_precision": same_label / pairs if pairs else None,
    }


def expected_information(clusters: np.ndarray, classes: np.ndarray) -> float:
    """Mean I(Z;T) in bits over all ways to assign N images to clusters of given sizes.

    The cells of the contingency table are then hypergeometric (Vinh, Epps and Bailey, JMLR 2010).
    Equal sizes are handled together and far tails left out, so the cost depends on the number of
    distinct sizes, at most about the square root of 2 N on each side.

    Args:
        clusters, classes: int (K,), (C,), sizes; both add up to N.
    """
    n = int(clusters.sum())
    (sizes_a, counts_a), (sizes_b, counts_b) = sorted(  # the loop is over fewer sizes
        (np.unique(sizes[sizes > 0], return_counts=True) for sizes in (clusters, classes)),
        key=lambda pair: len(pair[0]),
    )
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    joint = 0.0  # sum over the cells of the mean of x log2 x
    for a, count in zip(sizes_a.tolist(), counts_a.tolist(), strict=True):
        mean = a * sizes_b / n
        deviation = np.sqrt(mean * (n - a) * (n - sizes_b) / (n * max(1, n - 1)))
        reach = 10 * deviation + 30  # the tails beyond have a probability below 1e-18
        low = np.maximum(np.maximum(2, a + sizes_b - n), np.floor(mean - reach).astype(np.int64))
        high = np.minimum(np.minimum(a, sizes_b), np.ceil(mean + reach).astype(np.int64))
        lengths = np.maximum(0, high - low + 1)
        first = np.cumsum(lengths) - lengths
        x = np.arange(lengths.sum()) + np.repeat(low - first, lengths)
        b = np.repeat(sizes_b, lengths)
        log_p = log_factorial[b] + log_factorial[n - b] - log_factorial[x] - log_factorial[b - x]
        log_p -= log_factorial[a - x] + log_factorial[n - a - b + x]
        log_p += log_factorial[a] + log_factorial[n - a] - log_factorial[n]
        terms = np.exp(log_p) * x * np.log2(x) * np.repeat(counts_b, lengths)
        joint += count * float(terms.sum())
    return entropy(clusters) + entropy(classes) - np.log2(n) + joint / n


def shuffled_positives(sizes: np.ndarray, batch: int) -> tuple[float, float]:
    """Expected positives per anchor and share of anchors without any in a random batch.

    The other B - 1 images are drawn without replacement from N - 1 (hypergeometric).
    """
    n = int(sizes.sum())
    if n < 2:
        return 0.0, 1.0
    distinct, counts = np.unique(sizes, return_counts=True)
    shares = distinct * counts / n  # of the images, by size of their cluster
    mean = float((shares * (distinct - 1)).sum() * (batch - 1) / (n - 1))
    without_positive = 0.0
    for size, share in zip(distinct, shares, strict=True):
        # probability that none of its size - 1 positives is among the batch - 1 others
        drawn = np.arange(min(int(size) - 1, n - 1))
        free = n - batch - drawn
        none = float(np.exp(np.log(free / (n - 1 - drawn)).sum())) if (free > 0).all() else 0.0
        without_positive += float(share) * none
    return mean, without_positive


def composed_positives(sizes: np.ndarray, group: int, batch: int) -> tuple[float, float]:
    """Expected positives per anchor in a composed batch, and share of images that are singletons.

    An anchor meets its group, and those of its cluster's other images that are in the batch by
    chance.
    """
    sizes = sizes[sizes > 0]
    n = int(sizes.sum())
    s, m = sizes.astype(np.float64), float(group)
    full_groups, rest = np.floor(s / m), s % m
    joined = (rest == 1) & (full_groups > 0)  # a single remaining image joins a full group
    pairs = np.where(joined, full_groups - 1, full_groups) * m * (m - 1)
    pairs += np.where(joined, (m + 1) * m, rest * (rest - 1))
    in_group = pairs / s
    by_chance = np.maximum(0, s - 1 - in_group) * np.maximum(0, batch - 1 - in_group)
    mean = in_group + by_chance / np.maximum(1, n - 1 - in_group)
    return float((mean * s).sum() / n), float((sizes == 1).sum() / n)


def render(rows: list[Quality], batch: int) -> str:
    """A table with one line per granularity."""
    head = ["clusters", "K", "H(Z)", "I(Z;T)", "above chance", "H(Z|T)", "pair precision"]
    head += ["singletons", "size 10/50/90 %", f"positives at B={batch}", "without any"]
    body = []
    for q in rows:
        body.append(
            [
                q.name,
                f"{q.clusters:,}",
                f"{q.h_z:.2f}",
                "-" if q.i_zt is None else f"{q.i_zt:.2f}",
                "-" if q.i_zt_adjusted is None else f"{q.i_zt_adjusted:.2f}",
                "-" if q.h_z_t is None else f"{q.h_z_t:.2f}",
                "-" if q.pair_precision is None else f"{q.pair_precision:.2f}",
                f"{q.singles:.0%}",
                "/".join(map(str, q.sizes[:3])),
                f"{q.composed_positives:.1f} (shuffled {q.shuffled_positives:.1f})",
                f"{q.composed_lonely:.0%} (shuffled {q.shuffled_lonely:.0%})",
            ]
        )
    return table(head, body)


def warning(quality: Quality) -> str | None:
    """A warning if most anchors would meet no positive, else None."""
    if quality.composed_lonely <= 0.5:
        return None
    return (
        f"{quality.name}: {quality.composed_lonely:.0%} of the anchors would meet no other image "
        "of their cluster, so this is mostly SimCLR; take fewer attributes or a coarser level"
    )
