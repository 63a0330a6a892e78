"""Exceptions for what a user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# attributes of Ray's exceptions that hold the exception they wrap
WRAPPED = ("controller_failure", "health_check_failure", "_base_exc", "cause")


class UserError(ValueError):
    """Wrong input or options: the message names the file, column or value, and the remedy.

    Jobs print it as one line and exit with status 1; other exceptions are shown with a traceback.
    """


class TrainingError(RuntimeError):
    """Workers failed for good: the message holds their tracebacks. Jobs print it as it is."""


class StorageError(OSError):
    """A storage operation failed: the message names the path, the cause and the remedy.

    Jobs print it as they print a UserError.

    Attributes:
        permanent: a retry would fail the same way until the user fixes the cause.
    """

    def __init__(self, text: str, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


@contextmanager
def reading(subject: str, fault: str = "cannot be read") -> Iterator[None]:
    """Convert any exception inside to a UserError ``subject fault: reason``, for parsers of user
    data, which raise many types, from KeyError to MemoryError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        reason = text if text and isinstance(error, (OSError, ValueError)) else repr(error)[:200]
        raise UserError(f"{subject} {fault}: {reason}") from error


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError or StorageError among the causes of an exception, as a UserError."""
    for cause in causes(error):
        if type(cause) in (UserError, StorageError):  # not Ray's subclasses with longer messages
            # Ray Data appends advice on retries
            return UserError(str(cause).split("\nFailed to apply UDF transform")[0])
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """An exception and all exceptions it wraps, without duplicates."""
    found: list[BaseException] = []
    pending: list[object] = [error]
    while pending:
        exception = pending.pop()
        if not isinstance(exception, BaseException) or any(exception is e for e in found):
            continue
        found.append(exception)
        pending += dict(getattr(exception, "worker_failures", {})).values()  # of Ray Train
        pending += [getattr(exception, name, None) for name in WRAPPED]
        pending += [exception.__context__, exception.__cause__]
    return found
