"""What Ray Data's passes over the images and their metadata took, for the end of a run.

Ray Data keeps its figures with the data set that was executed. The driver notes them here after
each pass; :func:`taken` adds them up by what the pass was for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from ray.data import Dataset

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """Work of the tasks of one or more passes.

    Attributes:
        rows: that came out at the end. tasks: of all steps. nodes: most that one step ran on.
        cpu_seconds: CPU time of all tasks.
    """

    rows: int = 0
    tasks: int = 0
    nodes: int = 0
    cpu_seconds: float = 0.0

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.rows + other.rows,
            self.tasks + other.tasks,
            max(self.nodes, other.nodes),
            self.cpu_seconds + other.cpu_seconds,
        )


_NOTED: dict[str, Pass] = {}


def note(what: str, executed: Dataset, rows: int | None = None) -> None:
    """Take down what a data set that was executed has cost.

    Args:
        rows: images, where the rows of the data set are something else.
    """
    try:
        found = _pass(executed._get_stats_summary())
    except Exception as error:  # private to Ray, and figures only
        LOG.debug("no statistics of %s: %s", what, error)
        return
    if rows is not None:
        found = replace(found, rows=rows)
    _NOTED[what] = _NOTED.get(what, Pass()) + found


def taken() -> dict[str, Pass]:
    """What was noted since the last call, in order."""
    found = dict(_NOTED)
    _NOTED.clear()
    return found


def _pass(summary: Any) -> Pass:
    whole, last = Pass(), 0
    waiting = [summary]
    while waiting:
        one = waiting.pop()
        for step in one.operators_stats:
            if step.cpu_time is None or step.is_sub_operator or one.base_name is None:
                continue  # parts of a step, and what was there at the start
            tasks = int(step.task_rows.count) if step.task_rows else 0
            nodes = int(step.node_count.count) if step.node_count else 0
            whole += Pass(0, tasks, nodes, float(step.cpu_time.sum))
            if one is summary and step.output_num_rows:
                last = int(step.output_num_rows.sum)
        waiting += one.parents
    return whole + Pass(rows=last)
