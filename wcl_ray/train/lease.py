"""One process at a time on a run: a sign of life in its folder, renewed while the run lasts.

Schedulers start a command again that they take for dead, and people submit it twice. A process that
finds the sign of another watches it for a while: one that is renewed means that the run is in good
hands, one that is not is taken over. This is no lock: a process that is cut off from the storage
for longer than another watches may train beside it until it sees the storage again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from wcl_ray.errors import UserError
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

EVERY = 10.0  # seconds between two signs of life
MISSED = 4  # signs that are left out before another process takes over
OLD = 600.0  # seconds after which no watching is needed, even where clocks differ
SIGN = ".alive"


class Lease:
    """Holds a run folder while the context lasts, from :meth:`take` on.

    Entering takes a folder that holds a run already; a new one is taken before it is made.

    Args:
        every: seconds between two signs of life.
    """

    def __init__(self, folder: Folder, every: float = EVERY) -> None:
        self.folder, self.every = folder, every
        self.own = {"token": uuid.uuid4().hex, "machine": _machine(), "pid": os.getpid()}
        self.own |= {"host": socket.gethostname(), "job": _job()}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        if self.folder.exists("config.json"):
            self.take()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=30)
        try:
            sign = self._read()
            if sign is not None and sign["token"] == self.own["token"]:
                self.folder.delete(SIGN)
        except OSError as error:  # it grows old by itself
            warn(f"{self.folder.uri}/{SIGN} cannot be deleted: {error}")
        if self.folder.local:
            with contextlib.suppress(OSError):  # there is a run in it
                os.rmdir(self.folder.path)

    def take(self) -> None:
        """Hold the folder; nothing happens when it is held already.

        Raises:
            UserError: another process is at work on it.
        """
        if self._thread is not None:
            return
        sign = self._read()
        if sign is not None and self._alive(sign):
            self._watch(sign)
        self._write()
        time.sleep(self.every / 40)
        seen = self._read()
        if seen is not None and seen["token"] != self.own["token"]:  # both at once: the later one
            raise UserError(self._busy(seen))
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _alive(self, sign: dict[str, Any]) -> bool:
        """Whether the process that left a sign may still be there."""
        if sign["machine"] == self.own["machine"]:
            return sign["pid"] != os.getpid() and _running(int(sign["pid"]))
        return abs(time.time() - float(sign["time"])) < OLD

    def _watch(self, sign: dict[str, Any]) -> None:
        patience = MISSED * self.every
        text = f"{_who(sign)} was at work on {self.folder.uri}"
        say("waiting", f"{text}; {patience:.0f} s for a sign of it")
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self.every / 4))
            seen = self._read()
            if seen is None:  # it has ended
                return
            if seen != sign:
                raise UserError(self._busy(seen))

    def _busy(self, sign: dict[str, Any]) -> str:
        text = f"{self.folder.uri} is in the works: {_who(sign)}; stop it first"
        return f"{text}, or choose another --name"

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
        while not self._stop.wait(self.every):
            try:
                sign = self._read()
                if sign is not None and sign["token"] != self.own["token"]:
                    warn(f"{_who(sign)} has taken {self.folder.uri} over; this one stops")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._write()
            except OSError as error:
                warn(f"no sign of life can be left in {self.folder.uri}: {error}")


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
