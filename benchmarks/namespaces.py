"""Hosts on one machine, from Linux namespaces: each a raylet with its own network, processes and
folders. They live inside namespaces of one process and end with it, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NET = "10.213.77"  # .1 is the bridge, .2 the head
SCRATCH = "/tmp/wclhost"  # a tmpfs of every host's own; short, since Ray's sockets lie there
MARK = "WCL_RAY_INSIDE_NAMESPACES"
OWN = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
JOIN = """set -e
hostname {name}
mount -t tmpfs tmpfs {scratch}
mount -t tmpfs tmpfs /dev/shm
echo '127.0.0.1 localhost\n{address} {name}' > {scratch}/hosts
for folder in $(findmnt --real -rno TARGET); do mount -o remount,bind,ro "$folder"; done
mount --bind {scratch}/hosts /etc/hosts
exec {python} -m ray.scripts.scripts start --block --disable-usage-stats --temp-dir={scratch}/ray \
    --node-ip-address={address} --object-store-memory=80000000 {words}
"""


def wait_for(event: str, condition: Callable[[], Any], seconds: float = 200) -> float:
    """Wait until something is true; returns the time.

    Raises:
        SystemExit: it was not true in time.
    """
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"FAILED  {event}: nothing after {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic()


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


class Host:
    """A host on the bridge; number 1 is the head."""

    def __init__(self, number: int, logs: Path) -> None:
        self.name, self.address = f"host{number}", f"{NET}.{number + 1}"
        self.log = logs / f"{self.name}.log"
        ip(f"netns add {self.name}")
        ip(f"link add {self.name} type veth peer eth0 netns {self.name}")
        ip(f"link set {self.name} master bridge up")
        ip(f"-n {self.name} link set lo up")
        ip(f"-n {self.name} address add {self.address}/24 dev eth0")
        ip(f"-n {self.name} link set eth0 up")
        ip(f"-n {self.name} route add default dev eth0")
        words = f"--address={NET}.2:6379 --num-cpus=1"
        if number == 1:
            words = "--head --port=6379 --num-cpus=0 --include-dashboard=false"
        self.script = JOIN.format(words=words, python=sys.executable, scratch=SCRATCH, **vars(self))
        self.start()

    def start(self) -> None:
        """Power on; the host joins the cluster."""
        with self.log.open("wb") as log:
            words = ["ip", "netns", "exec", self.name, *OWN, "sh", "-c", self.script]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd="/")
        wait_for(f"{self.name} to start", lambda: "runtime started" in self.log.read_text(), 60)

    def power_off(self) -> None:
        """End all processes and folders of the host."""
        self.process.kill()
        self.process.wait()

    def first_process(self) -> str:
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]

    def run(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on the host."""
        enter = f"nsenter --target {self.first_process()} --mount --uts --ipc --net --pid".split()
        with log.open("wb") as out:
            return subprocess.Popen([*enter, *words], stdout=out, stderr=out, cwd="/")

    def trainers(self) -> list[str]:
        """Process ids of the training workers on the host."""
        processes = []
        namespace = os.readlink(f"/proc/{self.first_process()}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                here = os.readlink(process / "ns/pid") == namespace
                if here and b"RayTrainWorker" in (process / "cmdline").read_bytes():
                    processes.append(process.name)
            except OSError:  # it has just ended
                continue
        return processes


def bridge() -> None:
    """The network that the hosts are on; this process has the address .1."""
    ip("link set lo up")
    ip("link add bridge type bridge")
    ip(f"address add {NET}.1/24 dev bridge")
    ip("link set bridge up")


def inside(environment: dict[str, str]) -> bool:
    """Whether this process is in namespaces of its own; else it starts itself anew in them.

    Where that cannot be, the reason is printed.

    Raises:
        SystemExit: with the status of the process in the namespaces.
    """
    if MARK in os.environ:
        os.environ.update(environment)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # names of namespaces
        os.makedirs(SCRATCH, exist_ok=True)
        return True
    trial = "mount -t tmpfs tmpfs /run && ip netns add trial && ip link add bridge type bridge"
    trial += " && ip link add veth1 type veth peer veth2 netns trial"
    tools = "for tool in nsenter findmnt setpriv; do command -V $tool >/dev/null || exit 1; done"
    words = [*OWN, "--net", "sh", "-c", f"{tools}; {trial}"]
    try:
        subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or str(error)
        print(f"skipped: no network namespaces here: {why.strip().splitlines()[-1]}")
        return False
    words = ["setpriv", "--pdeathsig", "KILL", *OWN, "--net", sys.executable, *sys.argv]
    process = subprocess.Popen(words, env=os.environ | {MARK: "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        raise SystemExit(process.wait())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        process.kill()  # and all that lives in its namespaces
