"""The exceptions for what a user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# where Ray keeps the exception that another one is about
INSIDE = ("controller_failure", "health_check_failure", "_base_exc", "cause")


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


@contextmanager
def reading(what: str, fault: str = "cannot be read") -> Iterator[None]:
    """Around a call that parses a user's data: whatever a library raises becomes a UserError
    ``what fault: why``. Parsers raise many types, from KeyError to MemoryError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        named = why if why and isinstance(error, (OSError, ValueError)) else repr(error)[:200]
        raise UserError(f"{what} {fault}: {named}") from error


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
        waiting += [getattr(one, key, None) for key in INSIDE]
        waiting += [one.__context__, one.__cause__]
    return found
