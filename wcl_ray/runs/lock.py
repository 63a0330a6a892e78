"""One process at a time on a run: a sign of life in its folder, renewed while the run lasts.

Schedulers start a command again that they take for dead, and people submit it twice. A process that
finds the sign of another watches it for a while: one that is renewed means that the run is in good
hands, one that is not is taken over. A process that is cut off from the storage for longer than
another watches may work beside it until it sees the storage again.

Of processes that start at once one leaves its sign. On disks they look and write under a file lock;
object stores, which have no such thing, keep the sign of the last one, so that each waits for as
long as the others may take, and looks again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wcl_ray.errors import UserError
from wcl_ray.storage import Folder, storage_error, storage_errors
from wcl_ray.terminal import say, warn

EVERY = 10.0  # seconds between two signs of life
MISSED = 4  # signs that are left out before another process takes over
OLD = 600.0  # seconds after which no watching is needed, even where clocks differ
SIGN, LOCK = ".alive", ".alive.lock"


class RunLock:
    """Holds a folder while the context lasts; a new one is removed again when nothing came of it.

    Args:
        every: seconds between two signs of life.
        instead: what else may be done where another process is at work.

    Raises:
        UserError: on entering: another process is at work on it.
        StorageError: on entering: the folder cannot be written.
    """

    def __init__(
        self, folder: Folder, every: float = EVERY, instead: str = "choose another --name"
    ) -> None:
        self.folder, self.every, self.instead = folder, every, instead
        self.own = {"token": uuid.uuid4().hex, "machine": _machine(), "pid": os.getpid()}
        self.own |= {"host": socket.gethostname(), "job": _job()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._made: list[str] = []

    def __enter__(self) -> RunLock:
        left = None  # the sign of a process that is gone
        while (seen := self._place(left)) is not None:
            if not self._alive(seen) or self._watch(seen):
                left = seen
        self._hold()
        return self

    def take(self) -> bool:
        """Hold the folder unless another process seems to; that one is not watched."""
        seen = self._place(None)
        if seen is not None and not self._alive(seen):
            seen = self._place(seen)
        if seen is not None:
            return False
        self._hold()
        return True

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=30)
        try:
            with self._alone():
                sign = self._read()
                if sign is not None and sign["token"] == self.own["token"]:
                    self.folder.delete(SIGN)
        except OSError as error:  # it grows old by itself
            warn(f"{self.folder.uri}/{SIGN} cannot be deleted: {error}")
        self.folder.prune(self._made)

    def _hold(self) -> None:
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _place(self, left: dict[str, Any] | None) -> dict[str, Any] | None:
        """Leave the sign of this process in the place of none, or of the one that was left there.

        Returns:
            The sign that is there instead; None: this process holds the folder.
        """
        if self.folder.local:  # the folder itself also when another process has just made it
            self._made = self._made or self.folder.missing() or [self.folder.path]
        try:
            return self._look(left)
        except BaseException:
            self.folder.prune(self._made)
            raise

    def _look(self, left: dict[str, Any] | None) -> dict[str, Any] | None:
        with self._alone() as alone:
            started = time.monotonic()
            seen = self._read()
            if seen is not None and seen != left:
                return seen
            self._write()
            if alone:
                return None
            # one that saw no sign either writes its own within half of the first time; where this
            # one took longer, another may be at work, which sees it and stops
            slow = time.monotonic() - started > self.every / 8
            time.sleep(2 * self.every if slow else self.every / 4)
            seen = self._read()
            return None if seen is None or seen["token"] == self.own["token"] else seen

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other processes from the sign for a moment; whether that can be done here."""
        lock = None
        try:
            lock = self._lock()
            yield lock is not None
        finally:
            if lock is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self.folder.file(LOCK))  # while it is held: see _lock
                os.close(lock)

    def _lock(self) -> int | None:
        if not self.folder.local:
            return None
        path = self.folder.file(LOCK)
        while True:
            with storage_errors(self.folder.path):
                os.makedirs(self.folder.path, exist_ok=True)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # the folder was removed since
                continue
            except OSError as error:
                raise storage_error(self.folder.path, error) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                there = os.stat(path)
            except FileNotFoundError:
                os.close(lock)
                continue
            except OSError:  # a file system without locks
                os.close(lock)
                os.unlink(path)
                return None
            if os.path.samestat(there, os.fstat(lock)):
                return lock
            os.close(lock)  # its owner has deleted it: there may be another one

    def _alive(self, sign: dict[str, Any]) -> bool:
        """Whether the process that left a sign may still be there."""
        if sign["machine"] == self.own["machine"]:
            return sign["pid"] != os.getpid() and _running(int(sign["pid"]))
        return abs(time.time() - float(sign["time"])) < OLD

    def _watch(self, sign: dict[str, Any]) -> bool:
        """Whether a process shows no sign of life; False: its sign is gone."""
        patience = MISSED * self.every
        text = f"{_who(sign)} was at work on {self.folder.uri}"
        say("waiting", f"{text}; {patience:.0f} s for a sign of it")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self.every / 4))
            seen = self._read()
            if seen is None:  # it has ended
                return False
            if seen != sign:
                raise UserError(self._busy(seen))
        return True

    def _busy(self, sign: dict[str, Any]) -> str:
        text = f"{self.folder.uri} is in the works: {_who(sign)}; stop it first"
        return f"{text}, or {self.instead}"

    def _read(self) -> dict[str, Any] | None:
        """The sign that is there; None without any, or where it is something else."""
        try:
            found = json.loads(self.folder.read(SIGN))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and found.keys() >= self.own.keys() else None

    def _write(self) -> None:
        self.folder.write(SIGN, json.dumps(self.own | {"time": time.time()}).encode())

    def _renew(self) -> None:
        warned = False
        while not self._stop.wait(self.every):
            try:
                with self._alone():
                    sign = self._read()
                    if sign is None or sign["token"] == self.own["token"]:
                        self._write()
                        continue
            except OSError as error:
                if not warned:
                    warn(f"no sign of life can be left in {self.folder.uri}: {error}")
                warned = True
                continue
            warn(f"{_who(sign)} has taken {self.folder.uri} over; this one stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _who(sign: dict[str, Any]) -> str:
    job = f", job {sign['job']}" if sign["job"] else ""
    return f"process {sign['pid']} on {sign['host']}{job}"


def _job() -> str | None:
    """Id of the submitted job that this process is of."""
    try:
        given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(given["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _machine() -> str:
    """What processes that see each other's numbers have in common."""
    boot, space = socket.gethostname(), ""
    with contextlib.suppress(OSError):  # no Linux
        boot += "/" + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    return f"{boot}/{space}"


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
