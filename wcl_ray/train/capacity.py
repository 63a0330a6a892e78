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
    """Resources of a cluster, of one that grows when it has grown as far as it may.

    Attributes:
        cpus, gpus: in all.
        node_cpus: CPUs of the largest node.
        cpus_beside_gpus: smallest number of CPUs of a node with GPUs; 0 where there is none.
        gpus_a_node: GPUs of that node.
        cpu_only: CPUs of the nodes without GPUs.
        grows: nodes come on demand; more than ``cpus`` and ``gpus`` may, where the limits are not
            known.
    """

    cpus: float
    gpus: int
    node_cpus: float
    cpus_beside_gpus: float = 0.0
    gpus_a_node: int = 0
    cpu_only: float = 0.0
    grows: bool = False


def capacity(scale: ScaleConfig) -> Capacity:
    """Capacity of the cluster that this process is connected to."""
    now = [(dict(n["Resources"]), 1.0) for n in ray.nodes() if n["Alive"]]
    kinds = _limits() if scale.grows != "no" else []
    return add_up(now, kinds, scale.grows == "yes" or bool(kinds))


def add_up(
    now: Iterable[tuple[Resources, float]], kinds: Iterable[tuple[Resources, float]], grows: bool
) -> Capacity:
    """Capacity from nodes.

    Args:
        now: resources of the nodes that are there, with their number.
        kinds: resources of the kinds of node that may come, each with the largest number of it,
            those that are there included.
    """
    now, kinds = list(now), list(kinds)

    def total(name: str, nodes: list[tuple[Resources, float]]) -> float:
        return sum(resources.get(name, 0.0) * count for resources, count in nodes)

    def both(name: str) -> float:
        return max(total(name, now), total(name, kinds))

    every = [resources for resources, count in now + kinds if count > 0]
    with_gpu = [r for r in every if r.get("GPU", 0) >= 1]
    least = min(with_gpu, key=lambda r: r.get("CPU", 0) / r["GPU"], default={})
    without = [
        sum(r.get("CPU", 0) * n for r, n in nodes if r.get("GPU", 0) < 1) for nodes in (now, kinds)
    ]
    return Capacity(
        cpus=both("CPU"),
        gpus=int(both("GPU")),
        node_cpus=max((r.get("CPU", 0.0) for r in every), default=0.0),
        cpus_beside_gpus=least.get("CPU", 0.0),
        gpus_a_node=int(least.get("GPU", 0)),
        cpu_only=max(without),
        grows=grows,
    )


def _limits() -> list[tuple[Resources, float]]:
    """Kinds of node that may come, with their largest numbers; empty where that is not known."""
    # told by some autoscalers; Ray Train and Ray Data read it in the same way
    config = ray._private.state.state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [(dict(g.resources), float(g.max_count)) for g in config.node_group_configs]
    path = Path(BOOTSTRAP).expanduser()
    if not path.is_file():
        return []
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return []
    return node_kinds(tree) if isinstance(tree, dict) else []


def node_kinds(tree: dict[str, Any]) -> list[tuple[Resources, float]]:
    """Kinds of node of a ``cluster.yaml``: resources, and the largest number of each."""
    head, most = tree.get("head_node_type"), float(tree.get("max_workers") or 0)
    found = []
    for name, kind in (tree.get("available_node_types") or {}).items():
        resources = {k: float(v) for k, v in (kind.get("resources") or {}).items()}
        count = 1.0 if name == head else min(most, float(kind.get("max_workers") or 0))
        found.append((resources, count))
    return found
