"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input or options: the message names the file, column or value, and what to do.

    Jobs print it as one line and end with status 1; everything else is shown with its traceback.
    """


class TrainingError(RuntimeError):
    """Workers have failed for good: the message holds their tracebacks. Jobs print it as it is."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError inside the wrappers that Ray puts around what a task raised."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        cause = getattr(one, "cause", None)
        if type(one) is UserError:
            # Ray Data adds advice on retries to what a task raised
            return UserError(str(one).split("\nFailed to apply UDF transform")[0])
        if isinstance(cause, BaseException):
            waiting.append(cause)
        waiting += [one.__cause__, one.__context__]
        waiting.append(getattr(one, "controller_failure", None))  # of Ray Train
        waiting += getattr(one, "worker_failures", {}).values()
    return None
