"""The one exception for what a user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Wrong input or options: the message names the file, column or value, and what to do.

    Jobs print it as one line and end with status 1; everything else is shown with its traceback.
    """


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
    return None
