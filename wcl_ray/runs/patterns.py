"""What the images of a cluster have in common, in words, read again from their metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from wcl_ray.clusters.binarise import Attribute
from wcl_ray.clusters.views import View
from wcl_ray.config import ClustersConfig
from wcl_ray.data.data_stats import note
from wcl_ray.data.images import Images
from wcl_ray.data.sources.base import ID
from wcl_ray.evaluate.examples import Examples
from wcl_ray.registry import KINDS
from wcl_ray.storage import Folder


def name_clusters(
    examples: Examples, clusters: ClustersConfig, names: Sequence[str], images: Images, run: Folder
) -> Examples:
    """The examples with the words of their clusters: those of one image of each, in one pass over
    the metadata. Only clusters of metadata or labels have words.

    Args:
        names: of the granularities.
    """
    kind_of = KINDS.get(clusters.kind)
    if kind_of.needs not in ("columns", "label") or not examples.sheets:
        return examples
    kind = kind_of(clusters, images.label, images.available)
    if kind.granularity and kind.names != tuple(names):  # the depth of a hierarchy, by default
        kind.values = tuple(int(name.rpartition("-")[2]) for name in names)
    if run.exists("rounds/000/clusters.json"):
        summary = json.loads(run.read("rounds/000/clusters.json"))
        kind.chosen = [stored_attribute(a) for a in summary["attributes"]]
    ids = examples.images["id"].to_numpy()
    first = {sheet: int(ids[sheet.rows[0]]) for sheet in examples.sheets}
    wanted = np.unique(list(first.values()))

    def describe(table: pa.Table) -> pa.Table:
        table = table.filter(pa.array(np.isin(table[ID].to_numpy(), wanted)))
        return pa.table(dict(zip([ID, *names], [table[ID], *kind.words(table)], strict=True)))

    columns = [images.label] if kind.needs == "label" and images.label else kind.columns
    rows = images.metadata(columns).map_batches(describe, batch_format="pyarrow", batch_size=None)
    refs = rows.to_arrow_refs()
    note("metadata", rows)
    texts = {row[ID]: row for block in ray.get(refs) for row in block.to_pylist()}
    words: dict[str, dict[int, str]] = {name: {} for name in names}
    for sheet, image in first.items():
        if text := texts.get(image, {}).get(sheet.granularity):
            words[sheet.granularity][sheet.cluster] = text
    return examples.with_words(words)


def stored_attribute(stored: dict[str, Any]) -> Attribute:
    """An attribute of ``clusters.json``."""
    view = stored.get("view")
    if view is not None:
        view = View(tuple(view["columns"]), view["form"])
    return Attribute(**(stored | {"view": view}))
