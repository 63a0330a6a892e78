"""How a job stops: Ctrl-C and SIGTERM end it within seconds, with a line on how to go on.

All files are written atomically, so a job may end anywhere. The main thread gets the usual
exception and leaves in good order; what holds that up (Ray's start, which waits 30 s for a process
that the signal has ended, its shutdown, a call in C, the interpreter's last garbage collection) is
cut off after :data:`PATIENCE`. Ray's processes end with the driver.
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
ANEW = "the same command starts anew"
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped"}


class _State:
    promise = ANEW
    active = False
    received = 0  # number of the signal
    said = False


def promise(text: str) -> None:
    """What a command after a stop will do, from now on: said where a step has made it true."""
    _State.promise = text


def promised() -> str:
    return _State.promise


def received() -> int:
    """The signal that has come, 0 without any."""
    return _State.received


@contextmanager
def prompt_stop() -> Iterator[None]:
    """Within the context SIGINT and SIGTERM end the process within PATIENCE; a second one at once.
    In another thread than the main one nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.promise, _State.said = ANEW, False
    before = {number: signal.getsignal(number) for number in WORDS}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # the interpreter writes here as soon as a signal comes, whatever the main thread is doing
    old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    atexit.register(_leave)  # before Ray is imported, so that it comes last
    _State.active = True
    signal.signal(signal.SIGINT, _raise)
    take_sigterm()
    try:
        yield
    finally:
        _State.active = False
        if not _State.received:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            atexit.unregister(_leave)
            writer.close()


def take_sigterm() -> None:
    """Have SIGTERM raise SystemExit. Where a process joins a cluster, Ray puts a handler in front
    of it that prints a stack and aborts the process three seconds later."""
    if _State.active and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def report(number: int) -> None:
    """Print once that the job was stopped, and what goes on."""
    if not _State.said:
        _State.said = True
        line = f"error: {WORDS[signal.Signals(number)]}; {_State.promise}\n"
        os.write(2, line.encode())  # no lock of a stream that the main thread may hold


def _raise(number: int, frame: FrameType | None) -> None:
    _State.received = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(number)


def _watch(reader: socket.socket) -> None:
    """In a thread: the bytes that the interpreter writes for signals."""
    seen = False
    with reader:
        while data := reader.recv(1):
            if data[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            _State.received = data[0]
            if seen:
                _end()
            seen = True
            timer = threading.Timer(PATIENCE, _end)
            timer.daemon = True
            timer.start()


def _end() -> None:
    report(_State.received)
    os._exit(128 + _State.received)


def _leave() -> None:
    """The end of a stopped process, after Ray's own: what is left would take seconds."""
    if _State.received:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(128 + _State.received)
