"""What jobs print: the lines of a run's story, one live line, and tables."""

from __future__ import annotations

import io
import sys
import time
from contextlib import suppress
from shutil import get_terminal_size


def put(text: str = "", end: str = "\n") -> None:
    """Print; a terminal, pipe or log that cannot take it never ends a run."""
    with suppress(OSError, UnicodeError):
        print(text, end=end, flush=True)


def say(what: str, text: str) -> None:
    """One line of the story: what it is about, and the news."""
    put(f"{what:<10}{text}")


def warn(text: str) -> None:
    """A warning, on a line of its own."""
    put(f"warning: {text}")


def any_script() -> None:
    """Print what the terminal's encoding cannot show with its number: names are in any script, and
    file names need not even be text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table(head: list[str], body: list[list[str]]) -> str:
    """Plain text table, first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(head), rule, *map(line, body)])


class Live:
    """One calm line: rewritten in place on a terminal, printed now and then elsewhere."""

    def __init__(self, title: str, plain_seconds: float = 15.0) -> None:
        self._title = title
        self._every = plain_seconds
        self._tty = sys.stdout.isatty()
        self._printed = 0.0
        self._line = ""

    def show(self, text: str) -> None:
        line = f"{self._title}  {text}"
        if self._tty:
            width = get_terminal_size().columns - 1
            put(f"\r\x1b[K{line[:width]}", end="")
        elif time.monotonic() - self._printed > self._every:
            put(line)
            self._printed = time.monotonic()
            line = ""
        self._line = line

    def close(self) -> None:
        """Leave the last line standing."""
        if self._tty and self._line:
            put()
        elif self._line:
            put(self._line)
        self._line = ""


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def bytes_text(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
