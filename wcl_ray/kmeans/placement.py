"""Where vectors lie, so that a shard of k-means is held on the node that made its rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.data.homes import homes_of
from wcl_ray.kmeans.vectors import Piece, Vectors


@dataclass(frozen=True)
class Homes:
    """The nodes of the objects of a source.

    Attributes:
        nodes: object (in hexadecimal) → node; empty where all lie on one node, so that there is
            nothing to gain, or where the rows are read from files.
        room: node → actors that it has free CPUs (or GPUs) for.
    """

    nodes: dict[str, str]
    room: dict[str, int] = field(default_factory=dict)

    def order(self, vectors: Vectors) -> Vectors:
        """The pieces node by node: consecutive ones, which make a shard, lie together."""
        if not self.nodes:
            return vectors
        return Vectors(tuple(sorted(vectors.pieces, key=lambda piece: self.node(piece) or "")))

    def node(self, piece: Piece) -> str | None:
        """Node of a piece, None where it is not known."""
        return None if piece.ref is None else self.nodes.get(piece.ref.hex())

    def strategies(self, shards: list[list[Piece]]) -> list[NodeAffinitySchedulingStrategy | str]:
        """Where the actor of each shard should run: where most of its rows are, else anywhere."""
        left = dict(self.room)
        return [self._strategy(shard, left) for shard in shards]

    def _strategy(
        self, shard: list[Piece], left: dict[str, int]
    ) -> NodeAffinitySchedulingStrategy | str:
        rows: dict[str, int] = defaultdict(int)
        for piece in shard:
            node = self.node(piece)
            if node is not None:
                rows[node] += piece.stop - piece.start
        if not rows:
            return "SPREAD"
        home = max(sorted(rows), key=lambda node: rows[node])
        if left.get(home, 0) < 1:  # full: the rows can be sent, an actor should not wait
            return NodeAffinitySchedulingStrategy(home, soft=True, _spill_on_unavailable=True)
        left[home] -= 1
        return NodeAffinitySchedulingStrategy(home, soft=True)  # elsewhere if it is lost


def find_homes(vectors: Vectors, resource: str = "CPU", each: float = 1.0) -> Homes:
    """Ask Ray where the objects of a source lie.

    Args:
        resource, each: what an actor takes of its node.
    """
    refs = list({piece.ref.hex(): piece.ref for piece in vectors.pieces if piece.ref}.values())
    if len(refs) < 2:
        return Homes({})
    nodes = homes_of(refs).nodes
    if len(set(nodes.values())) < 2:
        return Homes({})
    free = ray._private.state.available_resources_per_node()
    room = {node: int(have.get(resource, 0.0) / max(each, 0.01)) for node, have in free.items()}
    return Homes(nodes, room)
