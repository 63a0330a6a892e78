"""What the cluster has, what it may grow to, and what a run takes of it."""

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


@dataclass(frozen=True)
class Scale:
    """Workers of a run and what each holds.

    Attributes:
        least, most: number of workers; between the two the run is elastic.
        cpus: that each worker holds.
        gpu: whether each holds a GPU.
        crowded: other runs share the cluster, so that this one may not take what seems free.
    """

    least: int
    most: int
    cpus: float
    gpu: bool
    crowded: bool = False

    def describe(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        kind = "1 GPU and " if self.gpu else ""
        return f"{count} worker(s) with {kind}{self.cpus:g} CPU(s) each"


def gpus(scale: ScaleConfig, there: Capacity | None = None) -> int:
    """GPUs to use; 0: work on CPUs.

    Raises:
        UserError: none is there though one is demanded.
    """
    if scale.gpu == "no":
        return 0
    there = there or capacity(scale)
    if scale.gpu == "yes" and there.gpus == 0:
        wanted = scale.range()
        if there.grows and wanted:
            return wanted[1]
        raise UserError(
            "scale.gpu is yes, but the cluster has no GPU; use auto or no, or on a cluster that "
            "grows on demand --scale.grows yes and --scale.workers MIN:MAX"
        )
    return there.gpus


def plan_scale(scale: ScaleConfig, batch_size: int, beside: bool) -> Scale:
    """Workers from the options and the cluster, see :func:`divide`."""
    return divide(scale, batch_size, beside, capacity(scale))


def divide(scale: ScaleConfig, batch_size: int, beside: bool, there: Capacity) -> Scale:
    """Workers from the options and what the cluster has.

    Args:
        batch_size: B, global.
        beside: Ray Data reads or evaluates during training and needs CPUs of its own.

    Raises:
        UserError: no GPU though one is demanded; a batch too small for the workers.
    """
    count = gpus(scale, there)
    gpu = count > 0
    first = 1 if there.grows else count  # nodes come while training goes on
    least, most = scale.range() or ((first, count) if gpu else (1, 1))
    if batch_size < 2 * most:
        raise UserError(
            f"train.batch-size {batch_size} is too small for {most} workers: each "
            "needs at least 2 images of a batch"
        )
    reading = float(beside)
    grow = "or, on a cluster that grows on demand, add --scale.grows yes"
    unlimited = scale.grows == "yes"
    free = there.cpus - reading  # reading and evaluating beside training need a CPU of their own
    if free <= 0 and not unlimited and not (gpu and not reading):
        raise UserError(
            f"reading anew or evaluating during training needs 2 CPUs, the cluster has "
            f"{there.cpus:g}; use --data.keep raw and --evaluate.every 0, {grow}"
        )
    share = scale.cpus_per_worker
    if share > there.node_cpus and not unlimited:
        raise UserError(
            f"scale.cpus-per-worker {share:g} is more than the {there.node_cpus:g} CPUs of the "
            f"largest node; lower it, {grow}"
        )
    share = share or (_beside_gpus(there, reading) if gpu else _even(there, most, reading))
    fits = there.workers(share, gpu)
    if fits < least and not unlimited:
        raise UserError(
            f"{least} workers with {'a GPU and ' if gpu else ''}{share:g} CPUs each do not fit, "
            f"only {fits}; lower --scale.workers or --scale.cpus-per-worker, {grow}"
        )
    return Scale(least=least, most=most, cpus=share, gpu=gpu)


def _beside_gpus(there: Capacity, reading: float) -> float:
    """CPUs of each worker on a GPU: its part of its node, all of it where nodes without GPUs are
    there to read and decode, which then have to go there.

    Raises:
        UserError: no CPU is left for the tasks that read.
    """
    kept = 0.0 if there.now >= max(reading, 1.0) else reading
    parts = [(cpus - kept) / gpus for cpus, gpus, _ in there.nodes if gpus]
    least = min(parts, default=1.0)
    if least <= 0 and kept:
        raise UserError(
            "reading anew or evaluating during training needs a CPU beside those of the workers on "
            "every GPU node; use --data.keep raw and --evaluate.every 0, or larger nodes"
        )
    return float(int(least)) if least >= 1 else int(100 * least) / 100


def _even(there: Capacity, most: int, reading: float) -> float:
    """The most CPUs with which ``most`` workers find a place, a CPU left for reading; whole ones
    where each can have one."""
    nodes = sorted(there.nodes, reverse=True)
    if reading and nodes:
        cpus, gpus, count = nodes[0]
        nodes = [(cpus - reading, gpus, 1), (cpus, gpus, count - 1), *nodes[1:]]
    left = Capacity(tuple((c, g, n) for c, g, n in nodes if c > 0 and n))
    parts = {cpus / k for cpus, _, _ in left.nodes for k in range(1, most + 1)}
    shares = {float(int(part)) if part >= 1 else int(1000 * part) / 1000 for part in parts}
    fitting = [share for share in shares if share and left.workers(share, gpu=False) >= most]
    return max(fitting, default=1.0)
