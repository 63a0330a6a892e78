"""The exceptions for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input or options: the message names the file, column or value, and what to do.

    Jobs print it as one line and end with status 1; everything else is shown with its traceback.
    """


class TrainingError(RuntimeError):
    """Workers have failed for good: the message holds their tracebacks. Jobs print it as it is."""


class StorageError(OSError):
    """The storage refused something: the message names the path, the cause and what to do.

    Jobs print it as they print a UserError.

    Attributes:
        lasting: the same again would fail the same way, until somebody mends it.
    """

    def __init__(self, text: str, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError or StorageError inside the wrappers that Ray puts around what a task raised."""
    for one in causes(error):
        if type(one) in (UserError, StorageError):  # Ray makes subclasses with longer messages
            # Ray Data adds advice on retries to what a task raised
            return UserError(str(one).split("\nFailed to apply UDF transform")[0])
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """An exception and all that are inside it, each once."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or any(one is other for other in found):
            continue
        found.append(one)
        waiting += dict(getattr(one, "worker_failures", {})).values()  # of Ray Train
        waiting += [getattr(one, key, None) for key in ("controller_failure", "_base_exc", "cause")]
        waiting += [one.__context__, one.__cause__]
    return found
