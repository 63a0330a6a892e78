"""How a job stops: Ctrl-C and SIGTERM end it within seconds, with a line on how to resume.

All files are written atomically, so a job may end anywhere. The main thread gets the usual
exception and exits cleanly; whatever delays that (Ray's start, which waits 30 s for a process that
the signal has ended, its shutdown, a call in C, the interpreter's last garbage collection) is cut
off after :data:`PATIENCE`. Ray's processes end with the driver.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.5  # seconds from the signal to the end of the process
START_OVER = "the same command starts over"
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped"}


class _State:
    """Process-wide state, like signal handlers."""

    resume_hint = START_OVER
    active = False
    received = 0  # number of the signal
    reported = False


def set_resume_hint(text: str) -> None:
    """Set what a stopped job says about the next command; call it once that is true."""
    _State.resume_hint = text


def resume_hint() -> str:
    """The text set last."""
    return _State.resume_hint


def received() -> int:
    """Number of the signal received, 0 if none."""
    return _State.received


@contextmanager
def prompt_stop() -> Iterator[None]:
    """Have SIGINT and SIGTERM end the process within PATIENCE, a second one at once. Does nothing
    outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.resume_hint, _State.reported = START_OVER, False
    old_handlers = {number: signal.getsignal(number) for number in WORDS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # the interpreter writes to it as soon as a signal arrives, whatever the main thread is doing
    old_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    _State.active = True
    signal.signal(signal.SIGINT, _raise)
    take_sigterm()
    try:
        yield
    finally:
        _State.active = False
        if not _State.received:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            writer.close()


def take_sigterm() -> None:
    """Have SIGTERM raise SystemExit. Call it again after ``ray.init``: joining a cluster, Ray
    installs a handler that prints a stack and aborts the process three seconds later."""
    if _State.active and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def report(number: int) -> None:
    """Print, once, that the job was stopped and how to resume."""
    if not _State.reported:
        _State.reported = True
        line = f"error: {WORDS[signal.Signals(number)]}; {_State.resume_hint}\n"
        os.write(2, line.encode())  # the main thread may hold the lock of sys.stderr


def _raise(number: int, frame: FrameType | None) -> None:
    _State.received = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(number)


def _watch(reader: socket.socket) -> None:
    """Read the bytes that the interpreter writes for signals, in a thread."""
    stopping = False
    with reader:
        while data := reader.recv(1):
            if data[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            _State.received = data[0]
            if stopping:
                _kill()
            stopping = True
            timer = threading.Timer(PATIENCE, _kill)
            timer.daemon = True
            timer.start()


def _kill() -> None:
    report(_State.received)
    os._exit(128 + _State.received)


def _exit_if_stopped() -> None:
    """Exit after Ray's own handlers: the rest of the interpreter's shutdown would take seconds."""
    if _State.received:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(128 + _State.received)


atexit.register(_exit_if_stopped)  # when imported, before Ray and plugins are, so that it runs last
