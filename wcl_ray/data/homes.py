"""On which nodes the objects of Ray's store lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.experimental

from wcl_ray.data.deal import Places
from wcl_ray.data.stream import Stream

ROOM = 0.25  # of a node's object store for blocks that its workers fetch from other nodes


@dataclass(frozen=True)
class Homes:
    """Nodes of objects.

    Attributes:
        nodes: object (in hexadecimal) → node; without those whose node is not known.
        largest: bytes of the largest object.
    """

    nodes: dict[str, str]
    largest: int


def homes_of(refs: Sequence[Any]) -> Homes:
    """Ask Ray where objects lie."""
    found = ray.experimental.get_object_locations(list(refs))
    copies = {ref.hex(): sorted(where["node_ids"]) for ref, where in found.items()}
    sizes = [int(where["object_size"] or 0) for where in found.values()]
    return Homes(_choose(copies), max(sizes, default=0))


def _choose(copies: dict[str, list[str]]) -> dict[str, str]:
    """One node for each object: of several copies that on the node with the fewest objects."""
    count: Counter[str] = Counter()
    chosen: dict[str, str] = {}
    for ref, nodes in sorted(copies.items(), key=lambda item: len(item[1])):
        if nodes:
            chosen[ref] = min(nodes, key=lambda node: (count[node], node))
            count[chosen[ref]] += 1
    return chosen


def number_homes(stream: Stream, workers: Sequence[str]) -> tuple[np.ndarray, int]:
    """int64 (blocks,): the place of each block's node in ``workers``, -1 = elsewhere; bytes of the
    largest block."""
    homes = homes_of(stream.blocks)
    number = {node: i for i, node in enumerate(workers)}
    found = [number.get(homes.nodes.get(ref.hex(), ""), -1) for ref in stream.blocks]
    return np.array(found, np.int64), homes.largest


def places_of(blocks: np.ndarray, ranks: np.ndarray, rank: int, largest: int) -> Places:
    """Places with the number of blocks that leaves this worker's node room for its others.

    Args:
        blocks, ranks: see :class:`Places`.
        largest: bytes of the largest block.
    """
    here = ray.get_runtime_context().get_node_id()
    stores = {n["NodeID"]: n["Resources"].get("object_store_memory", 0) for n in ray.nodes()}
    beside = int((ranks == ranks[rank]).sum())
    held = ROOM / 2 * stores[here] / beside / max(1, largest)  # as many are on their way
    return Places(blocks, ranks, max(1, int(held)))
