"""Finds the nodes that hold objects of Ray's store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.experimental

from wcl_ray.data.deal import Places

ROOM = 0.25  # of a node's object store for blocks that its workers fetch from other nodes


@dataclass(frozen=True)
class Homes:
    """Nodes of objects.

    Attributes:
        nodes: object (hexadecimal) → node; objects on no known node are missing.
        largest: bytes of the largest object.
    """

    nodes: dict[str, str]
    largest: int


def homes_of(refs: Sequence[Any]) -> Homes:
    """Ask Ray for the nodes of objects."""
    locations = ray.experimental.get_object_locations(list(refs))
    copies = {ref.hex(): sorted(location["node_ids"]) for ref, location in locations.items()}
    sizes = [int(location["object_size"] or 0) for location in locations.values()]
    return Homes(_choose(copies), max(sizes, default=0))


def _choose(copies: dict[str, list[str]]) -> dict[str, str]:
    """One node per object: if there are several copies, the node chosen for the fewest objects."""
    count: Counter[str] = Counter()
    chosen: dict[str, str] = {}
    for ref, nodes in sorted(copies.items(), key=lambda item: len(item[1])):
        if nodes:
            chosen[ref] = min(nodes, key=lambda node: (count[node], node))
            count[chosen[ref]] += 1
    return chosen


def number_homes(blocks: Sequence[Any], workers: Sequence[str]) -> tuple[np.ndarray, int]:
    """int64 (blocks,): index in ``workers`` of each block's node, -1 = elsewhere; and the bytes of
    the largest block."""
    homes = homes_of(blocks)
    index = {node: i for i, node in enumerate(workers)}
    numbers = [index.get(homes.nodes.get(ref.hex(), ""), -1) for ref in blocks]
    return np.array(numbers, np.int64), homes.largest


def places_of(blocks: np.ndarray, ranks: np.ndarray, rank: int, largest: int) -> Places:
    """Places, with as many blocks for this worker as its share of its node's store allows.

    Args:
        blocks, ranks: see :class:`Places`.
        largest: bytes of the largest block.
    """
    node_id = ray.get_runtime_context().get_node_id()
    stores = {n["NodeID"]: n["Resources"].get("object_store_memory", 0) for n in ray.nodes()}
    on_node = int((ranks == ranks[rank]).sum())
    held = ROOM / 2 * stores[node_id] / on_node / max(1, largest)  # as many are in transfer
    return Places(blocks, ranks, max(1, int(held)))
