"""How many trials run at a time, and what each of them holds, so that none waits for ever.

A trial is a driver (next to nothing), its workers as one placement group, and the tasks that
evaluate it. The workers of all concurrent trials leave room for those tasks; a placement group is
granted whole or not at all. So whatever is waiting waits for something that ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from wcl_ray.errors import UserError
from wcl_ray.runs.capacity import Scale, capacity, gpus
from wcl_ray.search.options import SearchConfig
from wcl_ray.terminal import warn

DRIVER = 0.01  # CPUs of a trial's driver, which only waits
LEAST_SPARE = 0.1  # CPUs without which no task runs
SPARE = 0.25  # share of a trial's CPUs for the tasks that evaluate it, at most one CPU


@dataclass(frozen=True)
class TrialResources:
    """What a trial gets.

    Attributes:
        concurrent: trials at a time.
        scale: workers of a trial.
        spare: CPUs for the tasks beside its workers.
    """

    concurrent: int
    scale: Scale
    spare: float

    def describe(self) -> str:
        return f"{self.concurrent} at a time, each {self.scale.describe()}"


def plan_share(config: SearchConfig, streamed: bool) -> TrialResources:
    """Divide the cluster between trials, see :func:`divide`.

    On an autoscaling cluster it is divided as if it had grown to its largest: trials that do not
    fit yet wait, and their placement groups make it grow.
    """
    there = capacity(config.scale)
    cluster = {"CPU": there.cpus, "GPU": float(gpus(config.scale, there))}
    return divide(config, cluster, there.node_cpus or 1.0, streamed)


def divide(
    config: SearchConfig, cluster: dict[str, float], widest: float, streamed: bool
) -> TrialResources:
    """Divide resources between trials.

    Args:
        cluster: CPU and GPU in all.
        widest: CPUs of the largest node.
        streamed: Ray Data reads during training, with one CPU for each trial.

    Raises:
        UserError: a GPU is demanded and there never will be one, or not even one trial fits.
    """
    scale, cpus = config.scale, cluster.get("CPU", 1.0)
    graphics = 0 if scale.gpu == "no" else int(cluster.get("GPU", 0))
    if scale.gpu == "yes" and graphics == 0:
        raise UserError("scale.gpu is yes, but the cluster has no GPU; use auto or no")
    least, most = scale.range() or (1, 1)
    if config.train.batch_size < 2 * most:
        raise UserError(
            f"train.batch-size {config.train.batch_size} is too small for {most} workers: each "
            "needs at least 2 images of a batch"
        )
    reading = 1.0 if streamed else 0.0
    wanted = config.concurrent or max(1, config.trials // 4)
    fit = graphics // least if graphics else int(cpus / least)
    if graphics and fit == 0:
        raise UserError(f"a trial has {least} workers, but there are only {graphics} GPUs")
    if scale.cpus_per_worker:  # of as many workers as a trial may grow to
        each = most * scale.cpus_per_worker + reading
        fit = min(fit, int((cpus - LEAST_SPARE) / (each + DRIVER) + 1e-9))
        if fit == 0:
            raise UserError(
                f"a trial needs {each:g} CPUs and a part of one to be evaluated, the cluster "
                f"has {cpus:g}; lower --scale.cpus-per-worker or --scale.workers"
            )
    concurrent = max(1, min(wanted, fit, config.trials))
    if config.concurrent > concurrent and config.trials > concurrent:
        warn(f"only {concurrent} trials fit into the cluster at a time, not {config.concurrent}")
    part = cpus / concurrent
    spare = reading + SPARE * min(4.0, part - reading)
    room = (part - spare - DRIVER) / most
    if room <= 0:
        raise UserError(
            f"streaming needs a CPU of its own beside each trial, the cluster has {cpus:g}; "
            "use --data.keep raw or a lower --concurrent"
        )
    whole = float(int(room)) if room >= 1 else room
    share = scale.cpus_per_worker or min(whole, widest)
    if scale.cpus_per_worker:  # what is left is for the tasks
        spare = max(LEAST_SPARE, min(1.0, part - DRIVER - share * most))
    workers = Scale(least, most, share, gpu=graphics > 0, crowded=True)
    return TrialResources(concurrent, workers, min(1.0, spare))
