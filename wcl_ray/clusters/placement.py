"""Where vectors lie, so that a shard of k-means is held on the node that made its rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import ray
import ray.experimental
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.clusters.vectors import Piece, Vectors


@dataclass(frozen=True)
class Homes:
    """The nodes of the objects of a source.

    Attributes:
        nodes: object (in hexadecimal) → node; empty where all lie on one node, so that there is
            nothing to gain, or where the rows are read from files.
    """

    nodes: dict[str, str]

    def order(self, vectors: Vectors) -> Vectors:
        """The pieces node by node: consecutive ones, which make a shard, lie together."""
        if not self.nodes:
            return vectors
        return Vectors(tuple(sorted(vectors.pieces, key=lambda piece: self.node(piece) or "")))

    def node(self, piece: Piece) -> str | None:
        """Node of a piece, None where it is not known."""
        return None if piece.ref is None else self.nodes.get(piece.ref.hex())

    def strategy(self, shard: list[Piece]) -> NodeAffinitySchedulingStrategy | str:
        """Where the actor of a shard should run: where most of its rows are, else anywhere."""
        rows: dict[str, int] = defaultdict(int)
        for piece in shard:
            node = self.node(piece)
            if node is not None:
                rows[node] += piece.stop - piece.start
        if not rows:
            return "SPREAD"
        home = max(sorted(rows), key=lambda node: rows[node])
        # a node that is lost or full is no reason to wait: the rows can be sent
        return NodeAffinitySchedulingStrategy(home, soft=True, _spill_on_unavailable=True)


def find_homes(vectors: Vectors) -> Homes:
    """Ask Ray where the objects of a source lie."""
    refs = list({piece.ref.hex(): piece.ref for piece in vectors.pieces if piece.ref}.values())
    if len(refs) < 2:
        return Homes({})
    found = ray.experimental.get_object_locations(refs)
    nodes = {ref.hex(): min(where["node_ids"]) for ref, where in found.items() if where["node_ids"]}
    return Homes(nodes if len(set(nodes.values())) > 1 else {})
