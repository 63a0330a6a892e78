"""What becomes of a worker's exception: what the user has to mend ends the run at once, others are
explained."""

from __future__ import annotations

import os
import traceback
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from wcl_ray.errors import StorageError, UserError, causes, find_user_error

MENDED = "; once that is mended, --resume goes on from the last checkpoint"
PATIENCE = 15.0  # seconds for the queue to take an error


class WorkerFailure(RuntimeError):
    """What the training loop raised: one line, then the traceback, which Ray Train would cut."""

    @classmethod
    def of(cls, error: Exception) -> WorkerFailure:
        """Of an exception that is being handled."""
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        return cls(f"{first}\n{traceback.format_exc().strip()}")


class EndOnUserError(UserCallback):
    """Looks at what workers have raised, in Ray Train's controller, before it may restart them.

    One rank alone may know of a fault, such as a mount that its node lacks, while the others wait
    for it in a collective. An exception of a callback ends the run, however many failures are left.

    Args:
        queue: told of failures that are tried again, and of the error where an evaluation has to
            be given up for it.
        evaluates: whether checkpoints are evaluated during training.
    """

    def __init__(self, queue: Any, evaluates: bool) -> None:
        self._queue, self._evaluates = queue, evaluates

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = next(filter(None, map(final, worker_exceptions.values())), None)
        if error is None:
            self._queue.push.remote({"kind": "warning", "text": in_short(worker_exceptions)})
            return
        # workers inside a collective cannot leave their group, and are killed after this
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "2"
        if self._evaluates and self._told(str(error)):
            # else the controller would wait for every evaluation of a checkpoint to end
            ray.get_runtime_context().current_actor.abort.remote()
        raise error

    def _told(self, text: str) -> bool:
        """Whether the error is in the queue, since an aborted controller cannot hand it over."""
        told = self._queue.push.remote({"kind": "error", "text": text})
        try:
            ray.get(told, timeout=PATIENCE)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return False
        return True


def final(failure: BaseException) -> UserError | None:
    """What makes it useless to try again: a UserError, or storage that would refuse the same again;
    None where there is no such thing."""
    refused = next((e for e in causes(failure) if type(e) is StorageError), None)
    if refused is None:
        return find_user_error(failure)
    return UserError(f"{refused}{MENDED}") if refused.permanent else None


def in_short(failures: dict[int, Exception]) -> str:
    """One line on failed workers, by rank; where processes died, the others only lost them."""
    dead = {rank: f for rank, f in failures.items() if hasattr(f, "health_check_failure")}
    failures = dead or failures
    return "; ".join(
        f"{_workers(ranks)} failed: {text.splitlines()[0]}"
        for text, ranks in _by_text(failures).items()
    )


def explain(error: WorkerGroupError) -> str:
    """Tracebacks of the workers that ended a run, each once, and whose they are."""
    failures = _by_text(error.worker_failures)
    parts = [f"{_workers(ranks)} failed: {text}" for text, ranks in failures.items()]
    return "\n\n".join(parts)


def _by_text(failures: dict[int, Exception]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "health_check_failure", failure)  # of a process that died
        text = str(cause).strip() or type(cause).__name__
        ranks.setdefault(text, []).append(rank)
    return ranks


def _workers(ranks: list[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
