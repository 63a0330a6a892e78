"""One process at a time per run: a heartbeat file in its folder, renewed while the run lasts.

Schedulers restart commands that they take for dead, and people submit them twice. A process that
finds the heartbeat of another watches it for a while: if it is renewed, the other is alive; if not,
the run is taken over. A process cut off from the storage for longer than another watches may work
beside that one until it sees the storage again.

If several processes start at once, one wins. On disks they read and write the heartbeat under a
file lock. Object stores have no locks and keep the last heartbeat written, so each process waits
for as long as the others may take, and reads it again.
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

INTERVAL = 10.0  # seconds between two heartbeats
MISSED = 4  # missed heartbeats after which another process takes over
STALE = 600.0  # seconds after which a heartbeat need not be watched, even if clocks differ
HEARTBEAT, LOCK = ".alive", ".alive.lock"


class RunLock:
    """Holds a folder while the context lasts; removes it at the end if it is new and still empty.

    Args:
        interval: seconds between two heartbeats.
        instead: advice in the error if another process holds the folder.

    Raises:
        UserError: on entering: another process holds the folder.
        StorageError: on entering: the folder cannot be written.
    """

    def __init__(
        self, folder: Folder, interval: float = INTERVAL, instead: str = "choose another --name"
    ) -> None:
        self.folder, self.interval, self.instead = folder, interval, instead
        self.identity = {"token": uuid.uuid4().hex, "machine": _machine(), "pid": os.getpid()}
        self.identity |= {"host": socket.gethostname(), "job": _job()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._made: list[str] = []

    def __enter__(self) -> RunLock:
        dead = None  # heartbeat of a dead process
        while (other := self._claim(dead)) is not None:
            if not self._alive(other) or self._watch(other):
                dead = other
        self._start_renewing()
        return self

    def take(self) -> bool:
        """Hold the folder unless another process may hold it, without watching that one."""
        other = self._claim(None)
        if other is not None and not self._alive(other):
            other = self._claim(other)
        if other is not None:
            return False
        self._start_renewing()
        return True

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=30)
        try:
            with self._exclusive():
                heartbeat = self._read()
                if heartbeat is not None and heartbeat["token"] == self.identity["token"]:
                    self.folder.delete(HEARTBEAT)
        except OSError as error:  # it becomes stale by itself
            warn(f"{self.folder.uri}/{HEARTBEAT} cannot be deleted: {error}")
        self.folder.prune(self._made)

    def _start_renewing(self) -> None:
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _claim(self, dead: dict[str, Any] | None) -> dict[str, Any] | None:
        """Write the heartbeat of this process if there is none, or only the ``dead`` one.

        Returns:
            The heartbeat of another process; None: this process holds the folder.
        """
        if self.folder.local:  # the folder itself even if another process has just made it
            self._made = self._made or self.folder.missing() or [self.folder.path]
        try:
            return self._try_claim(dead)
        except BaseException:
            self.folder.prune(self._made)
            raise

    def _try_claim(self, dead: dict[str, Any] | None) -> dict[str, Any] | None:
        with self._exclusive() as locked:
            started = time.monotonic()
            other = self._read()
            if other is not None and other != dead:
                return other
            self._write()
            if locked:
                return None
            # a process that saw no heartbeat either writes its own within half of the shorter wait;
            # if this one took longer, the other may hold the folder already: it sees this and stops
            slow = time.monotonic() - started > self.interval / 8
            time.sleep(2 * self.interval if slow else self.interval / 4)
            last = self._read()
            return None if last is None or last["token"] == self.identity["token"] else last

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Keep other processes from the heartbeat within the context; yields whether that works."""
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
                current = os.stat(path)
            except FileNotFoundError:
                os.close(lock)
                continue
            except OSError:  # the file system has no locks
                os.close(lock)
                os.unlink(path)
                return None
            if os.path.samestat(current, os.fstat(lock)):
                return lock
            os.close(lock)  # its owner has deleted the file: there may be another one

    def _alive(self, heartbeat: dict[str, Any]) -> bool:
        """Whether the process of a heartbeat may still be alive."""
        if heartbeat["machine"] == self.identity["machine"]:
            return heartbeat["pid"] != os.getpid() and _running(int(heartbeat["pid"]))
        return abs(time.time() - float(heartbeat["time"])) < STALE

    def _watch(self, heartbeat: dict[str, Any]) -> bool:
        """Wait for another heartbeat; True: none came, False: the process has ended.

        Raises:
            UserError: the process is alive.
        """
        patience = MISSED * self.interval
        text = f"{_who(heartbeat)} was at work on {self.folder.uri}"
        say("waiting", f"{text}; up to {patience:.0f} s for its next heartbeat")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self.interval / 4))
            current = self._read()
            if current is None:
                return False
            if current != heartbeat:
                text = f"{self.folder.uri} is in use by {_who(current)}; stop it first"
                raise UserError(f"{text}, or {self.instead}")
        return True

    def _read(self) -> dict[str, Any] | None:
        """The heartbeat in the folder; None if there is none, or if the file holds no heartbeat."""
        try:
            content = json.loads(self.folder.read(HEARTBEAT))
        except (FileNotFoundError, ValueError):
            return None
        valid = isinstance(content, dict) and content.keys() >= self.identity.keys()
        return content if valid else None

    def _write(self) -> None:
        self.folder.write(HEARTBEAT, json.dumps(self.identity | {"time": time.time()}).encode())

    def _renew(self) -> None:
        warned = False
        while not self._stop.wait(self.interval):
            try:
                with self._exclusive():
                    heartbeat = self._read()
                    if heartbeat is None or heartbeat["token"] == self.identity["token"]:
                        self._write()
                        continue
            except OSError as error:
                if not warned:
                    warn(f"the heartbeat in {self.folder.uri} cannot be written: {error}")
                warned = True
                continue
            warn(f"{_who(heartbeat)} has taken over {self.folder.uri}; this process stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _who(heartbeat: dict[str, Any]) -> str:
    job = f", job {heartbeat['job']}" if heartbeat["job"] else ""
    return f"process {heartbeat['pid']} on {heartbeat['host']}{job}"


def _job() -> str | None:
    """Id of the submitted job that this process belongs to."""
    try:
        job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(job_config["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _machine() -> str:
    """Identifies the machine and PID namespace: processes of one see each other's PIDs."""
    boot, namespace = socket.gethostname(), ""
    with contextlib.suppress(OSError):  # not Linux
        boot += "/" + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{boot}/{namespace}"


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
