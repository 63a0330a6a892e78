"""Maps of the features: images in two dimensions, by PCA and by UMAP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import plotly.graph_objects as go

from wcl_ray.evaluate.examples import Examples
from wcl_ray.report.plots import COLOURS, SYMBOLS
from wcl_ray.report.template import MUTED, PAPER, figure, label

MOST_CLASSES = 16  # with a colour and symbol of their own


def has_umap() -> bool:
    """Whether the extra ``umap`` is installed."""
    try:
        version("umap-learn")
    except PackageNotFoundError:
        return False
    return True


def embedding_map(
    examples: Examples, picture: Callable[[bytes], int], most: int, umap: bool = False
) -> go.Figure | None:
    """The images of the map in two dimensions, by their label or, if no image has one, cluster.

    Args:
        picture: number of a thumbnail on the page.
        most: number of images.
        umap: use UMAP, not PCA.
    """
    images = examples.images.filter(examples.images["feature"].is_valid()).slice(0, most)
    if images.num_rows < 3:
        return None
    width = images["feature"].type.list_size
    x = images["feature"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    xy = flat_umap(x) if umap else flat(x)
    numbers = [picture(jpeg) for jpeg in images["thumbnail"].to_pylist()]
    names = [key or str(i) for key, i in zip(*(images[c].to_pylist() for c in ("key", "id")),
                                             strict=True)]  # fmt: skip
    labels = images["label"].to_pylist()
    if not any(labels):
        clusters = images["cluster"].to_pylist()
        labels = [None if c is None else f"cluster {c}" for c in clusters]
    common = [n for n, _ in Counter(v for v in labels if v is not None).most_common(MOST_CLASSES)]
    groups: dict[str, list[int]] = {name: [] for name in sorted(common)}
    for row, value in enumerate(labels):
        other = "" if value is None else "others"
        groups.setdefault(value if value in groups else other, []).append(row)
    traces = []
    for i, (name, rows) in enumerate(groups.items()):
        known = name in common
        traces.append(
            go.Scatter(
                x=xy[rows, 0].round(4).tolist(), y=xy[rows, 1].round(4).tolist(),
                mode="markers", name=label(name[:30]) or ("none" if common else "images"),
                customdata=[numbers[row] for row in rows], hoverinfo="none",
                text=[label(f"{labels[row]}: {names[row]}" if labels[row] else names[row])
                      for row in rows],
                marker={"size": 9, "opacity": 0.85, "line": {"width": 0.5, "color": PAPER},
                        "color": COLOURS[i % len(COLOURS)] if known or len(groups) == 1 else MUTED,
                        "symbol": SYMBOLS[(i // len(COLOURS) * 3 + i) % len(SYMBOLS)]},
            )
        )  # fmt: skip
    axis = {"showticklabels": False, "showgrid": False, "ticks": ""}
    method = "UMAP" if umap else "PCA"
    return figure(
        traces, axis | {"title": {"text": f"{method} 1"}},
        axis | {"title": {"text": f"{method} 2"}, "scaleanchor": "x"},
        showlegend=len(groups) > 1, hovermode="closest",
    )  # fmt: skip


def flat(x: np.ndarray) -> np.ndarray:
    """The first two principal components of features of unit length: (n, F) → (n, 2)."""
    x = _units(x)
    x = x - x.mean(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    xy = np.zeros((len(x), 2))
    xy[:, : min(2, len(s))] = (u * s)[:, :2]
    # the signs of components are arbitrary, but must not depend on the machine
    signs = np.sign(xy[np.abs(xy).argmax(0), [0, 1]])
    return xy * np.where(signs == 0, 1, signs)  # type: ignore[no-any-return]


def flat_umap(x: np.ndarray) -> np.ndarray:
    """UMAP of features by their cosine: (n, F) → (n, 2)."""
    from umap import UMAP

    reducer = UMAP(n_neighbors=min(15, len(x) - 1), metric="cosine", random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(_units(x)), dtype=float)


def _units(x: np.ndarray) -> np.ndarray:
    x = x.astype(float)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]
