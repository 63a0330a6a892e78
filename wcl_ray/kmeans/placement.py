"""Places the actors of k-means on the nodes that already hold their rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.data.homes import homes_of
from wcl_ray.kmeans.vectors import Piece, Vectors


@dataclass(frozen=True)
class Homes:
    """Nodes of the objects of a source.

    Attributes:
        nodes: object (hexadecimal) → node; empty if all objects are on one node or if the rows are
            read from files, since placement does not matter then.
        room: node → number of actors that its free CPUs (or GPUs) allow.
    """

    nodes: dict[str, str]
    room: dict[str, int] = field(default_factory=dict)

    def order(self, vectors: Vectors) -> Vectors:
        """Sort the pieces by node, so that the consecutive pieces of a shard are on one node."""
        if not self.nodes:
            return vectors
        return Vectors(tuple(sorted(vectors.pieces, key=lambda piece: self.node(piece) or "")))

    def node(self, piece: Piece) -> str | None:
        """Node of a piece, None if unknown."""
        return None if piece.ref is None else self.nodes.get(piece.ref.hex())

    def strategies(self, shards: list[list[Piece]]) -> list[NodeAffinitySchedulingStrategy | str]:
        """Scheduling strategy of each shard's actor: the node with most of its rows, else any."""
        room = dict(self.room)
        return [self._strategy(shard, room) for shard in shards]

    def _strategy(
        self, shard: list[Piece], room: dict[str, int]
    ) -> NodeAffinitySchedulingStrategy | str:
        rows: dict[str, int] = defaultdict(int)
        for piece in shard:
            node = self.node(piece)
            if node is not None:
                rows[node] += piece.stop - piece.start
        if not rows:
            return "SPREAD"
        home = max(sorted(rows), key=lambda node: rows[node])
        if room.get(home, 0) < 1:  # the node is full: rather send the rows than wait
            return NodeAffinitySchedulingStrategy(home, soft=True, _spill_on_unavailable=True)
        room[home] -= 1
        return NodeAffinitySchedulingStrategy(home, soft=True)  # elsewhere if the node is lost


def find_homes(vectors: Vectors, resource: str = "CPU", amount: float = 1.0) -> Homes:
    """Ask Ray for the nodes of the objects of a source.

    Args:
        resource, amount: what an actor needs on its node.
    """
    refs = list({piece.ref.hex(): piece.ref for piece in vectors.pieces if piece.ref}.values())
    if len(refs) < 2:
        return Homes({})
    nodes = homes_of(refs).nodes
    if len(set(nodes.values())) < 2:
        return Homes({})
    free = ray._private.state.available_resources_per_node()
    least = max(amount, 0.01)
    room = {node: int(resources.get(resource, 0.0) / least) for node, resources in free.items()}
    return Homes(nodes, room)
