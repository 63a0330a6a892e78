"""Parses the command line and YAML files to a :class:`wcl_ray.config.Config`.

A YAML file is read as flags, which are put in front of those of the command line: one parser checks
both, and flags win. Errors end the program with status 2 and one message.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from wcl_ray import stopping
from wcl_ray.config import Config, OptionError, option_errors
from wcl_ray.errors import TrainingError, find_user_error
from wcl_ray.flags import (
    TEXT,
    Flag,
    check,
    fold_open,
    read_words,
    read_yaml,
    to_words,
    values_of,
)
from wcl_ray.registry import METHODS, REGISTRIES, load_plugins
from wcl_ray.terminal import escape_unencodable

T = TypeVar("T")


def parse(
    argv: Sequence[str] | None = None,
    cls: type[T] = Config,  # type: ignore[assignment]
    prog: str | None = None,
    implied: Callable[[set[str]], list[str]] = lambda given: [],
) -> T:
    """Read the options of a job.

    Args:
        argv: command line without the program's name; ``sys.argv[1:]`` by default. ``--config
            FILE`` may be anywhere in it.
        cls: dataclass of the options; its fields and their docstrings give ``--help``.
        prog: name shown in the usage line.
        implied: takes the names of the given options, and returns words of a command line that
            they imply; given flags win over these.

    Raises:
        SystemExit: status 2 and a message on an unknown key, a wrong type or a value out of range;
            status 0 after ``--help``.
    """
    try:
        flags = _expand(read_words(sys.argv[1:] if argv is None else argv), cls)
        flags = read_words(implied({flag.name for flag in flags})) + fold_open(flags, cls)
        check(flags, cls)
        load_plugins(values_of(flags, "plugins"))  # they add values of options
        for registry in REGISTRIES.values():
            for name in values_of(flags, registry.option) if registry.closed else ():
                registry.check(name)
        _check_kind(flags)
        asks = any(flag.name == "help" for flag in flags)
        words = ["--help"] if asks else to_words(flags, cls)
        with option_errors():
            options = tyro.cli(cls, args=words, prog=prog, description=_description(cls))
        return _unmarked(options) if any(TEXT in word for word in words) else options
    except (ValueError, OptionError) as error:
        text = str(error)  # the mark is not part of what the user gave
        fail(text.replace(TEXT, "").replace(repr(TEXT)[1:-1], ""))


def demo_flags(given: set[str], *further: str) -> list[str]:
    """Options of the demo, and further ones, which a job implies without --data.path; see
    :func:`parse`."""
    if "data.path" in given:
        return []
    top_k = () if "clusters.from" in given else ("--clusters.top-k", "8")
    return [*further, "--data.label", "label", "--train.epochs", "15", *top_k]


def _expand(flags: list[Flag], cls: type) -> list[Flag]:
    """The flags of the files given by ``--config``, then the others."""
    files = [flag.values for flag in flags if flag.name == "config"]
    if any(len(values) != 1 for values in files):
        raise ValueError("--config needs the name of one YAML file")
    read = [flag for (name,) in files for flag in read_yaml(name, cls)]
    return read + [flag for flag in flags if flag.name != "config"]


def _check_kind(flags: list[Flag]) -> None:
    """Raise a ValueError if the given kind of clusters is not that of the given method. The
    configuration cannot tell the default from a kind that is given."""
    names, kinds = values_of(flags, "method"), values_of(flags, "clusters.kind")
    for name, kind in zip(names, kinds, strict=False):
        wanted = METHODS.get(name).kind if name != "cl-infonce" else None
        if wanted not in (None, kind):
            raise ValueError(
                f"method {name} has clusters of kind {wanted}, but clusters.kind is {kind}; leave "
                "it out"
            )


def _unmarked(value: Any) -> Any:
    """Options without the mark TEXT."""
    if isinstance(value, str):
        return value.removeprefix(TEXT)
    if isinstance(value, tuple):
        return tuple(map(_unmarked, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: _unmarked(getattr(value, n)) for n in names})
    return value


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def run_job(body: Callable[[], Any]) -> None:
    """Run the body of a job: errors that the user can fix become one line, others a traceback.

    A job that is interrupted ends within seconds with status 130, after SIGTERM with 143, and says
    what the same command will do (see :mod:`wcl_ray.stopping`).
    """
    escape_unencodable()
    with stopping.prompt_stop():
        try:
            body()
        except BaseException as error:
            number = stopping.received() or _signal_of(error)
            if number:
                stopping.report(number)
                raise SystemExit(128 + number) from None
            if not isinstance(error, Exception):
                raise
            user_error = find_user_error(error) or _limit_reached(error)
            clear = (FileNotFoundError, PermissionError, TrainingError)
            if user_error is None and not isinstance(error, clear):
                raise
            fail(str(user_error or error), 1)


def _limit_reached(error: Exception) -> Exception | None:
    if "ray" not in sys.modules:
        return None
    from wcl_ray.limits import limit_reached  # imported here to keep --help fast

    return limit_reached(error)


def _signal_of(error: BaseException) -> int:
    """The signal that raised an exception, 0 for other exceptions."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    # from `ray job stop` or a scheduler
    terminated = isinstance(error, SystemExit) and error.code == signal.SIGTERM
    return signal.SIGTERM if terminated else 0


def _description(cls: type) -> str:
    return (
        f"{(cls.__doc__ or '').strip()}\n\n--config FILE reads any of these options from a YAML "
        "file (train: {epochs: 50}); flags win over it."
    )
