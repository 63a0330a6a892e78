"""What jobs print: the lines of a run's story, tables, and one live line.

The lines go through the logger ``wcl_ray``, whose handler prints to the terminal by rich: plain
lines where the output is not a terminal. Its level, or a handler in its place, can be set as with
any logger of Python.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from contextlib import suppress

from rich.box import Box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

PLAIN_SECONDS = 15.0  # between two states of a live line where there is no terminal
_RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class _Console(Console):
    """A terminal, pipe or log that cannot take a line never ends a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
log = logging.getLogger("wcl_ray")


class _TerminalHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        line = Text(record.getMessage())
        if record.levelno >= logging.WARNING:
            line = Text(f"{record.levelname.lower()}: ", style="yellow") + line
        put(line)


if not log.handlers:
    log.addHandler(_TerminalHandler())
    log.setLevel(logging.INFO)
    log.propagate = False


def put(text: str | Text = "") -> None:
    """Print a line, above the live one."""
    with suppress(OSError, UnicodeError, ValueError):
        console.print(text)


def say(what: str, text: str) -> None:
    """One line of the story: what it is about, and the news."""
    log.info("%-10s%s", what, text)


def warn(text: str) -> None:
    """A warning, on a line of its own."""
    log.warning("%s", text)


def any_script() -> None:
    """Print what the terminal's encoding cannot show with its number: names are in any script, and
    file names need not even be text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table(head: list[str], body: list[list[str]]) -> str:
    """Plain text table, first column left, the others right."""
    grid = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        grid.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in body:
        grid.add_row(*map(Text, row))
    plain = Console(file=io.StringIO(), width=10_000, color_system=None)
    with plain.capture() as printed:
        plain.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


class Live:
    """A progress bar on a terminal; elsewhere a line now and then."""

    def __init__(self, title: str, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._title = title
        self._every = plain_seconds
        self._printed = 0.0
        self._line = ""
        self._progress: Progress | None = None

    def show(self, text: str, share: float | None = None) -> None:
        """Show a state in place of the last one.

        Args:
            share: of the work that is done, in [0, 1].
        """
        if console.is_terminal:
            with suppress(OSError, UnicodeError, ValueError):
                self._draw(text, share)
        elif time.monotonic() - self._printed > self._every:
            put(f"{self._title}  {text}")
            self._printed = time.monotonic()
            text = ""
        self._line = text

    def _draw(self, text: str, share: float | None) -> None:
        if self._progress is None:
            columns = TextColumn("{task.description}", markup=False), BarColumn(20)
            one_line = Column(no_wrap=True, overflow="ellipsis")
            state = TextColumn("{task.fields[text]}", markup=False, table_column=one_line)
            self._progress = Progress(*columns, state, console=console, auto_refresh=False)
            self._progress.add_task(self._title, total=1.0, text="")
            self._progress.start()
        task = self._progress.task_ids[0]
        self._progress.update(task, completed=share, text=text, refresh=True)

    def close(self) -> None:
        """Leave the last state standing."""
        if self._progress is not None:
            with suppress(OSError, UnicodeError, ValueError):
                self._progress.stop()
            self._progress = None
        elif self._line:
            put(f"{self._title}  {self._line}")
        self._line = ""


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def bytes_text(count: float) -> str:
    """Bytes as people read them.

    >>> bytes_text(20_000_000)
    '20 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
