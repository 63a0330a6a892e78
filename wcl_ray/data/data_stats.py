"""Cost of Ray Data's passes over the images and their metadata, for the summary of a run.

Ray Data keeps statistics with the executed data set. The driver notes them here after each pass;
:func:`taken` returns them summed by purpose.
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
        rows: of the output.
        tasks: of all steps.
        nodes: the largest number that one step ran on.
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
    """Note the cost of an executed data set.

    Args:
        what: the purpose of the pass, as the summary shows it.
        rows: number of images, if the rows of the data set are something else.
    """
    try:
        cost = _pass(executed._get_stats_summary())
    except Exception as error:  # Ray's private interface; a run must not fail for statistics
        LOG.debug("no statistics of %s: %s", what, error)
        return
    if rows is not None:
        cost = replace(cost, rows=rows)
    _NOTED[what] = _NOTED.get(what, Pass()) + cost


def taken() -> dict[str, Pass]:
    """Passes noted since the last call by purpose, in order."""
    passes = dict(_NOTED)
    _NOTED.clear()
    return passes


def _pass(summary: Any) -> Pass:
    total, output_rows = Pass(), 0
    pending = [summary]
    while pending:
        stage = pending.pop()
        for step in stage.operators_stats:
            if step.cpu_time is None or step.is_sub_operator or stage.base_name is None:
                continue  # parts of a step, and input blocks
            tasks = int(step.task_rows.count) if step.task_rows else 0
            nodes = int(step.node_count.count) if step.node_count else 0
            total += Pass(0, tasks, nodes, float(step.cpu_time.sum))
            if stage is summary and step.output_num_rows:
                output_rows = int(step.output_num_rows.sum)
        pending += stage.parents
    return total + Pass(rows=output_rows)
