"""How good clusters are before any training: information measures and positives per anchor.

Z is the cluster of an image, T its label. A clustering helps when I(Z;T) is high and H(Z|T) low;
both rise with granularity (Tsai et al., ICLR 2022, section 4). All in bits. Clusters of few images
know the label by chance, single images all of it, so clusterings are compared by I(Z;T) less what
clusters of the same sizes would know if their images were drawn at random.
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
        h_z, h_t, i_zt, h_z_t, h_t_z: H(Z), H(T), I(Z;T), H(Z|T), H(T|Z) in bits; None without
            labels. Images without a label are left out of those that need one.
        i_zt_adjusted: I(Z;T) less its mean over all ways to shuffle the images among the clusters;
            0 = chance.
        singles: share of singletons.
        pair_precision: share of pairs of one cluster that share a label; None without labels or
            pairs.
        sizes: 10th, 50th and 90th percentile and maximum of the cluster sizes, by cluster.
        shuffled_positives, shuffled_lonely: expected other-image positives per anchor, and share
            of anchors without any, in a random batch.
        composed_positives, composed_lonely: the same for batches composed of groups of m.
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
        return asdict(self)


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of a distribution given by counts."""
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
        batch: B, global batch size. group: m of the composition.
    """
    z = separate(clusters)
    sizes = np.bincount(z)
    n = len(z)
    known: dict[str, float | None] = dict.fromkeys(
        ("h_t", "i_zt", "i_zt_adjusted", "h_z_t", "h_t_z", "pair_precision")
    )
    if labels is not None and (labels >= 0).any():
        known = _against(z[labels >= 0], labels[labels >= 0])
    shuffled = shuffled_positives(sizes, min(batch, n))
    composed = composed_positives(sizes, group, min(batch, n)) if group > 1 else shuffled
    tenth, half, ninetieth = np.percentile(sizes, [10, 50, 90]).astype(int)
    return Quality(
        name=name,
        images=n,
        clusters=len(sizes),
        h_z=entropy(sizes),
        singles=float((sizes == 1).sum() / n),
        sizes=(int(tenth), int(half), int(ninetieth), int(sizes.max())),
        shuffled_positives=shuffled[0],
        shuffled_lonely=shuffled[1],
        composed_positives=composed[0],
        composed_lonely=composed[1],
        **known,
    )


def separate(clusters: np.ndarray) -> np.ndarray:
    """Clusters numbered without gaps, every -1 a cluster of its own."""
    z = clusters.astype(np.int64)
    singleton = z < 0
    z[singleton] = z.max(initial=-1) + 1 + np.arange(int(singleton.sum()))
    return np.unique(z, return_inverse=True)[1]


def _against(z: np.ndarray, t: np.ndarray) -> dict[str, float | None]:
    joint = np.unique(z * (int(t.max()) + 1) + t, return_counts=True)[1]
    of_z, of_t = np.bincount(z), np.bincount(t)
    h_z, h_t, h_joint = entropy(of_z), entropy(of_t), entropy(joint)
    shared = max(0.0, h_z + h_t - h_joint)
    same = float((joint * (joint - 1.0)).sum())
    all_pairs = float((of_z * (of_z - 1.0)).sum())
    return {
        "h_t": h_t,
        "i_zt": shared,
        "i_zt_adjusted": shared - expected_information(of_z, of_t),
        "h_z_t": max(0.0, h_joint - h_t),
        "h_t_z": max(0.0, h_joint - h_z),
        "pair_precision": same / all_pairs if all_pairs else None,
    }


def expected_information(clusters: np.ndarray, classes: np.ndarray) -> float:
    """Mean I(Z;T) in bits over all ways to deal N images into clusters of given sizes.

    A cell of the contingency table is then hypergeometric (Vinh, Epps and Bailey, JMLR 2010). Equal
    sizes are counted together, and far tails are left out, so that the work follows the number of
    different sizes: at most about the square root of 2 N on each side.

    Args:
        clusters, classes: int (K,), (C,), sizes; both add up to N.
    """
    n = int(clusters.sum())
    (few, times), (many, weights) = sorted(
        (np.unique(sizes[sizes > 0], return_counts=True) for sizes in (clusters, classes)),
        key=lambda pair: len(pair[0]),
    )
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    joint = 0.0  # sum over the cells of the mean of x log2 x
    for a, count in zip(few.tolist(), times.tolist(), strict=True):
        mean = a * many / n
        deviation = np.sqrt(mean * (n - a) * (n - many) / (n * max(1, n - 1)))
        reach = 10 * deviation + 30  # what lies beyond has a probability below 1e-18
        low = np.maximum(np.maximum(2, a + many - n), np.floor(mean - reach).astype(np.int64))
        high = np.minimum(np.minimum(a, many), np.ceil(mean + reach).astype(np.int64))
        lengths = np.maximum(0, high - low + 1)
        first = np.cumsum(lengths) - lengths
        x = np.arange(lengths.sum()) + np.repeat(low - first, lengths)
        b = np.repeat(many, lengths)
        log_p = log_factorial[b] + log_factorial[n - b] - log_factorial[x] - log_factorial[b - x]
        log_p -= log_factorial[a - x] + log_factorial[n - a - b + x]
        log_p += log_factorial[a] + log_factorial[n - a] - log_factorial[n]
        terms = np.exp(log_p) * x * np.log2(x) * np.repeat(weights, lengths)
        joint += count * float(terms.sum())
    return entropy(clusters) + entropy(classes) - np.log2(n) + joint / n


def shuffled_positives(sizes: np.ndarray, batch: int) -> tuple[float, float]:
    """Expected positives per anchor and share of anchors without any in a random batch.

    The other B - 1 images are drawn without replacement from N - 1 (hypergeometric).
    """
    n = int(sizes.sum())
    if n < 2:
        return 0.0, 1.0
    kinds, times = np.unique(sizes, return_counts=True)
    weight = kinds * times / n
    mean = float((weight * (kinds - 1)).sum() * (batch - 1) / (n - 1))
    without_positive = 0.0
    for size, share in zip(kinds, weight, strict=True):
        # probability that none of its size - 1 partners is among the batch - 1 others
        steps = np.arange(min(int(size) - 1, n - 1))
        free = n - batch - steps
        none = float(np.exp(np.log(free / (n - 1 - steps)).sum())) if (free > 0).all() else 0.0
        without_positive += float(share) * none
    return mean, without_positive


def composed_positives(sizes: np.ndarray, group: int, batch: int) -> tuple[float, float]:
    """Expected positives per anchor in a composed batch, and share of images that stay singletons.

    An anchor has its own group, and of its cluster's other images those that fall into the batch
    at random.
    """
    sizes = sizes[sizes > 0]
    n = int(sizes.sum())
    s, m = sizes.astype(np.float64), float(group)
    whole, rest = np.floor(s / m), s % m
    joined = (rest == 1) & (whole > 0)  # a single image joins a full group
    pairs = np.where(joined, whole - 1, whole) * m * (m - 1)
    pairs += np.where(joined, (m + 1) * m, rest * (rest - 1))
    own = pairs / s
    others = np.maximum(0, s - 1 - own) * np.maximum(0, batch - 1 - own)
    mean = own + others / np.maximum(1, n - 1 - own)
    return float((mean * s).sum() / n), float((sizes == 1).sum() / n)


def render(rows: list[Quality], batch: int) -> str:
    """A table for people, one line a granularity."""
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
    """What to say when most anchors would meet no positive."""
    if quality.composed_lonely <= 0.5:
        return None
    return (
        f"{quality.name}: {quality.composed_lonely:.0%} of the anchors would meet no other image "
        "of their cluster, so this is mostly SimCLR; take fewer attributes or a coarser level"
    )
