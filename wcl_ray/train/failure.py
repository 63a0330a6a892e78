"""Exceptions of workers: those the user has to fix end the run at once, others are explained."""

from __future__ import annotations

import os
import traceback
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError

from wcl_ray.errors import StorageError, UserError, causes, find_user_error

THEN_RESUME = "; once that is fixed, --resume continues from the last checkpoint"
PUSH_TIMEOUT = 15.0  # seconds


class WorkerFailure(RuntimeError):
    """An exception of the training loop with its traceback, which Ray Train would cut."""

    @classmethod
    def of(cls, error: Exception) -> WorkerFailure:
        """Wrap the exception that is being handled."""
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        return cls(f"{first_line}\n{traceback.format_exc().strip()}")


class EndOnUserError(UserCallback):
    """Ends a run on a user's error, in Ray Train's controller, before workers are restarted.

    A single rank may meet such an error, for instance because its node lacks a mount, while the
    others wait for it in a collective. Raising in a callback ends the run at any failure limit.

    Args:
        queue: the metrics queue; gets a warning of failures that are retried, and the error itself
            if the controller is aborted.
        evaluates: whether checkpoints are evaluated during training.
    """

    def __init__(self, queue: Any, evaluates: bool) -> None:
        self._queue, self._evaluates = queue, evaluates

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = next(filter(None, map(final_error, worker_exceptions.values())), None)
        if error is None:
            self._queue.push.remote({"kind": "warning", "text": summary(worker_exceptions)})
            return
        # workers inside a collective cannot leave their group; they are killed after this time
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = "2"
        if self._evaluates and self._push_error(str(error)):
            # otherwise the controller would wait for all evaluations of checkpoints to end
            ray.get_runtime_context().current_actor.abort.remote()
        raise error

    def _push_error(self, text: str) -> bool:
        """Push the error, which an aborted controller cannot return; whether that succeeded."""
        try:
            ray.get(self._queue.push.remote({"kind": "error", "text": text}), timeout=PUSH_TIMEOUT)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            return False
        return True


def final_error(failure: BaseException) -> UserError | None:
    """The error that makes a retry useless, a UserError or a permanent StorageError, or None."""
    storage_error = next((e for e in causes(failure) if type(e) is StorageError), None)
    if storage_error is None:
        return find_user_error(failure)
    return UserError(f"{storage_error}{THEN_RESUME}") if storage_error.permanent else None


def summary(failures: dict[int, Exception]) -> str:
    """One line on failed workers, by rank: on those whose processes died, if any did, since the
    others failed only because of them."""
    dead = {rank: f for rank, f in failures.items() if hasattr(f, "health_check_failure")}
    return "; ".join(
        f"{_workers(ranks)} failed: {text.splitlines()[0]}"
        for text, ranks in _ranks_by_text(dead or failures).items()
    )


def explain(error: WorkerGroupError) -> str:
    """The distinct tracebacks of the workers that ended a run, each with its ranks."""
    ranks_by_text = _ranks_by_text(error.worker_failures)
    return "\n\n".join(f"{_workers(ranks)} failed: {text}" for text, ranks in ranks_by_text.items())


def _ranks_by_text(failures: dict[int, Exception]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "health_check_failure", failure)  # if the process died
        text = str(cause).strip() or type(cause).__name__
        ranks.setdefault(text, []).append(rank)
    return ranks


def _workers(ranks: list[int]) -> str:
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
