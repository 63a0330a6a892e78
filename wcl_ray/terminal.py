"""What jobs print: log lines, tables, and one live line.

The lines go through the logger ``wcl_ray``, whose handler prints them with rich, or as plain lines
if the output is not a terminal. Its level and handler can be set as for any Python logger.
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

PLAIN_SECONDS = 15.0  # between two lines of a live line without a terminal
_RULED = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class _Console(Console):
    """A console whose closed pipe does not end a run."""

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
    """Print a line above the live line; errors of the terminal are ignored."""
    with suppress(OSError, UnicodeError, ValueError):
        console.print(text)


def say(topic: str, text: str) -> None:
    """Log a line that starts with its topic."""
    log.info("%-10s%s", topic, text)


def warn(text: str) -> None:
    """Log a warning."""
    log.warning("%s", text)


def escape_unencodable() -> None:
    """Print characters that the terminal's encoding lacks as escapes: file names can hold any
    character, and bytes that are not text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table(head: list[str], body: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Plain text table; the columns ``left`` are left-aligned, the others right-aligned."""
    grid = Table(box=_RULED, show_edge=False, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        grid.add_column(Text(name), justify="left" if i in left else "right", no_wrap=True)
    for row in body:
        grid.add_row(*map(Text, row))
    plain = Console(file=io.StringIO(), width=10_000, color_system=None)
    with plain.capture() as printed:
        plain.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


class Live:
    """A progress bar on a terminal; elsewhere a line every ``plain_seconds``."""

    def __init__(self, title: str, plain_seconds: float = PLAIN_SECONDS) -> None:
        self._title = title
        self._every = plain_seconds
        self._printed = 0.0
        self._line = ""
        self._progress: Progress | None = None

    def show(self, text: str, share: float | None = None) -> None:
        """Replace the text shown.

        Args:
            share: share of the work that is done, in [0, 1].
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
            title = TextColumn("{task.description}", markup=False)
            one_line = Column(no_wrap=True, overflow="ellipsis")
            state = TextColumn("{task.fields[text]}", markup=False, table_column=one_line)
            columns = title, BarColumn(20), state
            self._progress = Progress(*columns, console=console, auto_refresh=False)
            self._progress.add_task(self._title, total=1.0, text="")
            self._progress.start()
        task = self._progress.task_ids[0]
        self._progress.update(task, completed=share, text=text, refresh=True)

    def close(self) -> None:
        """Stop updating; the last text stays on the screen."""
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
    """Bytes in a readable unit.

    >>> bytes_text(20_000_000)
    '20 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
