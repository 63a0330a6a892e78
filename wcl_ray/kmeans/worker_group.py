"""The shard actors of one fit: starts them, calls them together and adds up their answers.

An actor reads its rows from the source, never from another actor. So Ray can restart a killed one
and repeat its call. One that keeps dying (its shard may be too large for the memory) ends the fit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray.device import device_for
from wcl_ray.kmeans import blas
from wcl_ray.kmeans.placement import find_homes
from wcl_ray.kmeans.vectors import Vectors, duplicated
from wcl_ray.kmeans.worker import KMeansWorker
from wcl_ray.terminal import warn

FAN_IN = 4  # partial sums that a worker adds at a time
PARTS = 64  # most parts of the ids in the search for duplicates; an object per actor and part
RESTARTS = 16  # of each actor
PATIENCE = 30.0  # seconds until a warning that actors wait for CPUs


class WorkerGroup:
    """Actors that each hold a shard.

    Args:
        actors: 0: one for every ``cpus`` free CPUs (or every free GPU) of the cluster, but each
            with at least ``LEAST`` rows.
        cpus: of each actor; rounded down, its number of threads, which is at least 1.
    """

    LEAST = 2000

    def __init__(
        self,
        vectors: Vectors,
        *,
        actors: int,
        cpus: float,
        gpu: bool,
        spherical: bool,
        kernel: str,
        seed: int,
    ) -> None:
        if actors == 0:
            resource, amount = ("GPU", 1.0) if gpu else ("CPU", max(cpus, 0.01))
            most = free(resource) // amount
            actors = int(max(1, min(most, vectors.rows // self.LEAST)))
        threads = max(1, int(cpus))
        remote = ray.remote(KMeansWorker)
        options: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": 1 if gpu else 0,
            "max_restarts": RESTARTS,
            "max_task_retries": RESTARTS,
            "runtime_env": {"env_vars": _environment(threads)},
        }
        arguments = spherical, kernel, threads, seed, device_for(gpu)
        self.vectors = vectors  # keeps the objects of a materialised data set alive
        homes = find_homes(vectors, *(("GPU", 1.0) if gpu else ("CPU", cpus)))
        self.pieces = homes.order(vectors).shards(actors)
        self.actors: list[Any] = [
            remote.options(**options, scheduling_strategy=strategy).remote(*arguments)
            for strategy in homes.strategies(self.pieces)
        ]
        refs = [actor.__ray_ready__.remote() for actor in self.actors]
        waiting = set(ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)[1])
        if waiting and homes.nodes:  # another job took the node's CPUs: send the rows elsewhere
            for i, ready in enumerate(refs):
                if ready in waiting:
                    ray.kill(self.actors[i])
                    self.actors[i] = remote.options(**options, scheduling_strategy="SPREAD").remote(
                        *arguments
                    )
                    refs[i] = self.actors[i].__ray_ready__.remote()
            waiting = set(ray.wait(refs, num_returns=len(refs), timeout=PATIENCE)[1])
        if waiting:
            need = f"{cpus:g} CPU(s)" + (" and a GPU" if gpu else "")
            warn(
                f"k-means: {len(waiting)} of {len(refs)} actors wait for {need} each; the cluster "
                f"has {_counts(ray.cluster_resources())}, of which "
                f"{_counts(ray.available_resources())} are free"
            )

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all actors; returns the answers in the order of the shards."""
        return list(ray.get(self._call(method, arguments)))

    def _call(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        return [
            actor.call.remote(pieces, method, *arguments)
            for actor, pieces in zip(self.actors, self.pieces, strict=True)
        ]

    def total(self, method: str, *arguments: Any) -> Any:
        """Call a method of all actors; returns the sum of the answers, added up by the actors as a
        tree."""
        refs, stride = self._call(method, arguments), 1
        while len(refs) > 1:
            groups = [refs[i : i + FAN_IN] for i in range(0, len(refs), FAN_IN)]
            stride *= FAN_IN
            refs = [
                self.actors[i * stride].call.remote(self.pieces[i * stride], "add", *group)
                if len(group) > 1
                else group[0]
                for i, group in enumerate(groups)
            ]
        return ray.get(refs[0])

    def duplicates(self) -> np.ndarray:
        """Ids that occur more than once in all shards together: int64, sorted."""
        parts = min(len(self.actors), PARTS)
        if parts == 1:
            return duplicated(self.ask("duplicates", 1)[0])
        rows = [
            actor.call.options(num_returns=parts).remote(pieces, "duplicates", parts)
            for actor, pieces in zip(self.actors, self.pieces, strict=True)
        ]
        refs = [  # calls of actors, so that no task has to start
            self.actors[i].call.remote(self.pieces[i], "duplicated", *[row[i] for row in rows])
            for i in range(parts)
        ]
        return np.sort(np.concatenate(ray.get(refs)))

    def keep(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all actors; returns references, which outlive the actors."""
        refs = self._call(method, arguments)
        ray.wait(refs, num_returns=len(refs), fetch_local=False)
        return refs

    def stop(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


def free(resource: str, patience: float = 3.0) -> float:
    """Free amount of a resource; waits up to ``patience`` seconds until all of it is free, since
    Ray shows resources that were just released with a delay."""
    limit = time.monotonic() + patience
    while True:
        amount = float(ray.available_resources().get(resource, 0.0))
        if amount >= ray.cluster_resources().get(resource, 0.0) or time.monotonic() > limit:
            return amount
        time.sleep(0.1)


def _counts(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _environment(threads: int) -> dict[str, str]:
    """Environment variables of the actors, which have to suit every node."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if nodes == [ray.get_runtime_context().get_node_id()]:  # only that of the driver
        return blas.environment(blas.cpu_flags(), threads)
    refs = [
        _cpu_flags.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
        ).remote()
        for node in nodes
    ]
    return blas.environment(frozenset.intersection(*ray.get(refs)), threads)


@ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")
def _cpu_flags() -> frozenset[str]:
    return blas.cpu_flags()
