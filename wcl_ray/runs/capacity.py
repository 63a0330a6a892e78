"""What the cluster has, and what it may grow to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from wcl_ray.config import ScaleConfig

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # where `ray up` leaves cluster.yaml on the head
Resources = dict[str, float]


@dataclass(frozen=True)
class Capacity:
    """Nodes of a cluster, of one that grows when it has grown as far as it may.

    Attributes:
        nodes: (CPUs, GPUs, number of such nodes).
        now: CPUs of nodes without GPUs that are there already.
        grows: nodes come on demand; others than ``nodes`` may, where the limits are not known.
    """

    nodes: tuple[tuple[float, int, int], ...]
    now: float = 0.0
    grows: bool = False

    @property
    def cpus(self) -> float:
        """CPUs in all."""
        return sum(cpus * count for cpus, _, count in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(gpus * count for _, gpus, count in self.nodes)

    @property
    def node_cpus(self) -> float:
        """CPUs of the largest node."""
        return max((cpus for cpus, _, _ in self.nodes), default=0.0)

    def workers(self, cpus: float, gpu: bool) -> int:
        """How many workers with so many CPUs each, and a GPU each, find a place."""

        def on(node_cpus: float, gpus: int) -> int:
            by_cpus = int(node_cpus / cpus + 1e-6) if cpus else 1 << 20
            return min(gpus, by_cpus) if gpu else by_cpus

        return sum(on(node_cpus, gpus) * count for node_cpus, gpus, count in self.nodes)


def capacity(scale: ScaleConfig) -> Capacity:
    """Capacity of the cluster that this process is connected to."""
    now = [(dict(n["Resources"]), 1) for n in ray.nodes() if n["Alive"]]
    kinds = _limits() if scale.grows != "no" else []
    return add_up(now, kinds, scale.grows == "yes" or bool(kinds))


def add_up(
    now: Iterable[tuple[Resources, int]], kinds: Iterable[tuple[Resources, int]], grows: bool
) -> Capacity:
    """Capacity from nodes.

    Args:
        now: resources of the nodes that are there, with their number.
        kinds: resources of the kinds of node that may come, each with the largest number of it,
            those that are there included.
    """

    def plain(nodes: Iterable[tuple[Resources, int]]) -> tuple[tuple[float, int, int], ...]:
        return tuple((r.get("CPU", 0.0), int(r.get("GPU", 0)), n) for r, n in nodes if n)

    there, most = Capacity(plain(now)), Capacity(plain(kinds))
    whole = max(there, most, key=lambda c: (c.gpus, c.cpus))
    beside = sum(cpus * count for cpus, gpus, count in there.nodes if gpus == 0)
    return Capacity(whole.nodes, beside, grows)


def _limits() -> list[tuple[Resources, int]]:
    """Kinds of node that may come, with their largest numbers; empty where that is not known."""
    # told by some autoscalers; Ray Train and Ray Data read it in the same way
    config = ray._private.state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [(dict(g.resources), int(g.max_count)) for g in config.node_group_configs]
    path = Path(BOOTSTRAP).expanduser()
    if not path.is_file():
        return []
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return []
    return node_kinds(tree) if isinstance(tree, dict) else []


def node_kinds(tree: dict[str, Any]) -> list[tuple[Resources, int]]:
    """Kinds of node of a ``cluster.yaml``: resources, and the largest number of each."""
    head, most = tree.get("head_node_type"), int(tree.get("max_workers") or 0)
    found = []
    for name, kind in (tree.get("available_node_types") or {}).items():
        resources = {k: float(v) for k, v in (kind.get("resources") or {}).items()}
        count = 1 if name == head else min(most, int(kind.get("max_workers") or 0))
        found.append((resources, count))
    return found
