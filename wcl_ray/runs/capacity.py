"""The CPUs and GPUs of the cluster, now and at its largest, and the share that a run takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from wcl_ray.config import ScaleConfig
from wcl_ray.errors import UserError

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # where `ray up` leaves cluster.yaml on the head
Resources = dict[str, float]


@dataclass(frozen=True)
class Capacity:
    """Nodes of a cluster; of one that grows on demand, those of its largest size.

    Attributes:
        nodes: (CPUs, GPUs, number of such nodes).
        cpus_without_gpu: CPUs of the running nodes that have no GPU.
        grows: nodes are added on demand, also kinds not in ``nodes`` if the limits are unknown.
    """

    nodes: tuple[tuple[float, int, int], ...]
    cpus_without_gpu: float = 0.0
    grows: bool = False

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(cpus * count for cpus, _, count in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(gpus * count for _, gpus, count in self.nodes)

    @property
    def node_cpus(self) -> float:
        """CPUs of the largest node."""
        return max((cpus for cpus, _, _ in self.nodes), default=0.0)

    def workers(self, cpus: float, gpu: bool) -> int:
        """How many workers fit that need ``cpus`` CPUs each and, with ``gpu``, a GPU each."""

        def per_node(node_cpus: float, gpus: int) -> int:
            by_cpus = int(node_cpus / cpus + 1e-6) if cpus else 1 << 20
            return min(gpus, by_cpus) if gpu else by_cpus

        return sum(per_node(node_cpus, gpus) * count for node_cpus, gpus, count in self.nodes)


def capacity(scale: ScaleConfig) -> Capacity:
    """Capacity of the cluster that this process is connected to."""
    running = [(dict(n["Resources"]), 1) for n in ray.nodes() if n["Alive"]]
    types = _limits() if scale.grows != "no" else []
    return add_up(running, types, scale.grows == "yes" or bool(types))


def add_up(
    running: Iterable[tuple[Resources, int]], types: Iterable[tuple[Resources, int]], grows: bool
) -> Capacity:
    """Capacity of running nodes and of the node types that the autoscaler may start.

    Args:
        running: resources of the running nodes, with their number.
        types: resources of each node type, with its largest number (running nodes included).
    """

    def counted(nodes: Iterable[tuple[Resources, int]]) -> tuple[tuple[float, int, int], ...]:
        return tuple((r.get("CPU", 0.0), int(r.get("GPU", 0)), n) for r, n in nodes if n)

    now, grown = Capacity(counted(running)), Capacity(counted(types))
    largest = max(now, grown, key=lambda c: (c.gpus, c.cpus))
    without_gpu = sum(cpus * count for cpus, gpus, count in now.nodes if gpus == 0)
    return Capacity(largest.nodes, without_gpu, grows)


def _limits() -> list[tuple[Resources, int]]:
    """Node types that the autoscaler may start, with their largest numbers; empty if unknown."""
    # reported by some autoscalers; Ray Train and Ray Data read it in the same way
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
    return node_types(tree) if isinstance(tree, dict) else []


def node_types(tree: dict[str, Any]) -> list[tuple[Resources, int]]:
    """Node types of a ``cluster.yaml``: resources, and the largest number of each."""
    head, max_workers = tree.get("head_node_type"), int(tree.get("max_workers") or 0)
    types = []
    for name, kind in (tree.get("available_node_types") or {}).items():
        resources = {k: float(v) for k, v in (kind.get("resources") or {}).items()}
        count = 1 if name == head else min(max_workers, int(kind.get("max_workers") or 0))
        types.append((resources, count))
    return types


@dataclass(frozen=True)
class Scale:
    """Workers of a run and what each holds.

    Attributes:
        min_workers, max_workers: if they differ, the run is elastic.
        cpus: CPUs of each worker.
        gpu: whether each worker holds a GPU.
        crowded: other runs share the cluster, so this one must not take what seems free.
    """

    min_workers: int
    max_workers: int
    cpus: float
    gpu: bool
    crowded: bool = False

    def describe(self) -> str:
        """The workers in words, for a line of output."""
        low, high = self.min_workers, self.max_workers
        gpu = "1 GPU and " if self.gpu else ""
        count = f"{low}" if low == high else f"{low} to {high}"
        return f"{count} worker(s) with {gpu}{self.cpus:g} CPU(s) each"


def gpus(scale: ScaleConfig, cluster: Capacity | None = None) -> int:
    """Number of GPUs to use; 0 means CPUs.

    Raises:
        UserError: GPUs are required and the cluster has none.
    """
    if scale.gpu == "no":
        return 0
    cluster = cluster or capacity(scale)
    if scale.gpu == "yes" and cluster.gpus == 0:
        workers = scale.range()
        if cluster.grows and workers:
            return workers[1]
        raise UserError(
            "scale.gpu is yes, but the cluster has no GPU; use auto or no, or on a cluster that "
            "grows on demand --scale.grows yes and --scale.workers MIN:MAX"
        )
    return cluster.gpus


def check_batch(batch_size: int, workers: int, option: str = "train.batch-size") -> None:
    """Raise a UserError unless every worker gets at least two images of a batch."""
    if batch_size < 2 * workers:
        raise UserError(
            f"{option} {batch_size} is too small for {workers} workers: each needs at least 2 "
            "images of a batch"
        )


def plan_scale(
    scale: ScaleConfig, batch_size: int, data_tasks: bool, decoding: bool = False
) -> Scale:
    """Plan the workers of a run on the connected cluster, see :func:`divide`."""
    return divide(scale, batch_size, data_tasks, capacity(scale), decoding)


def divide(
    scale: ScaleConfig,
    batch_size: int,
    data_tasks: bool,
    cluster: Capacity,
    decoding: bool = False,
) -> Scale:
    """Plan the workers of a run from the options and the capacity of the cluster.

    Args:
        batch_size: B, global.
        data_tasks: Ray Data reads or evaluates during training and needs a CPU of its own.
        decoding: the tasks that read also decode, and need half of the CPUs of GPU nodes.

    Raises:
        UserError: GPUs are required and there are none; the batch is too small for the workers;
            the workers do not fit.
    """
    count = gpus(scale, cluster)
    gpu = count > 0
    first = 1 if cluster.grows else count  # nodes are added during training
    low, high = scale.range() or ((first, count) if gpu else (1, 1))
    check_batch(batch_size, high)
    reserved = float(data_tasks)  # CPUs
    remedy = "or, on a cluster that grows on demand, add --scale.grows yes"
    unlimited = scale.grows == "yes"
    free = cluster.cpus - reserved
    if free <= 0 and not unlimited and not (gpu and not reserved):
        raise UserError(
            f"streaming or evaluating during training needs 2 CPUs, the cluster has "
            f"{cluster.cpus:g}; use --data.keep raw and --evaluate.every 0, {remedy}"
        )
    share = scale.cpus_per_worker
    if share > cluster.node_cpus and not unlimited:
        raise UserError(
            f"scale.cpus-per-worker {share:g} is more than the {cluster.node_cpus:g} CPUs of the "
            f"largest node; lower it, {remedy}"
        )
    share = share or (
        _gpu_share(cluster, reserved, decoding) if gpu else _even_share(cluster, high, reserved)
    )
    fits = cluster.workers(share, gpu)
    if fits < low and not unlimited:
        raise UserError(
            f"{low} workers with {'a GPU and ' if gpu else ''}{share:g} CPUs each do not fit, "
            f"only {fits}; lower --scale.workers or --scale.cpus-per-worker, {remedy}"
        )
    return Scale(min_workers=low, max_workers=high, cpus=share, gpu=gpu)


def _gpu_share(cluster: Capacity, reserved: float, decoding: bool) -> float:
    """CPUs of each GPU worker: an even share of its node, or of half of it if tasks decode. Workers
    take whole nodes only if other nodes have CPUs for the tasks that read and decode.

    Raises:
        UserError: no CPU is left for the tasks that read.
    """
    on_gpu_nodes = sum(cpus * count for cpus, gpus, count in cluster.nodes if gpus)
    elsewhere = cluster.cpus_without_gpu >= max(1.0, on_gpu_nodes / 2 if decoding else 0.0)

    def taken(cpus: float) -> float:
        return cpus if elsewhere else min(cpus - reserved, cpus / 2 if decoding else cpus)

    share = min((taken(cpus) / gpus for cpus, gpus, _ in cluster.nodes if gpus), default=1.0)
    if share <= 0 and not elsewhere and reserved:
        raise UserError(
            "streaming or evaluating during training needs a CPU besides those of the workers on "
            "every GPU node; use --data.keep raw and --evaluate.every 0, or larger nodes"
        )
    return float(int(share)) if share >= 1 else int(100 * share) / 100


def _even_share(cluster: Capacity, workers: int, reserved: float) -> float:
    """The most CPUs per worker with which all workers fit beside the reserved CPUs; a whole number
    if it is at least 1."""
    nodes = sorted(cluster.nodes, reverse=True)
    if reserved and nodes:
        cpus, gpus, count = nodes[0]
        nodes = [(cpus - reserved, gpus, 1), (cpus, gpus, count - 1), *nodes[1:]]
    free = Capacity(tuple((c, g, n) for c, g, n in nodes if c > 0 and n))
    exact = {cpus / k for cpus, _, _ in free.nodes for k in range(1, workers + 1)}
    shares = {float(int(share)) if share >= 1 else int(1000 * share) / 1000 for share in exact}
    fitting = [share for share in shares if share and free.workers(share, gpu=False) >= workers]
    return max(fitting, default=1.0)
