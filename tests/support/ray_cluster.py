"""Real Ray clusters for tests, on one machine: head and further nodes as `ray start` makes them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from runs import descendants

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
ADDRESS = "127.0.0.1"
STORE = 150 * 2**20  # bytes, of each node
FAST = {  # a lost node is noticed in a second
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_JOB_STOP_WAIT_TIME_S": "20",  # until a stopped job is killed
}
HEAD = "ray.head.default"  # as the fake provider calls it
UNUSED = (  # keys that the autoscaler reads without asking whether they are there
    "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands",
    "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
    "worker_start_ray_commands",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((ADDRESS, 0))
        return int(sock.getsockname()[1])


class RayCluster:
    """A cluster whose head has no CPUs of its own.

    Args:
        kinds: node types of an autoscaler (name → resources, with ``max`` the largest number), for
            Ray's fake provider, which starts them as processes.
    """

    def __init__(self, store: int = STORE, kinds: dict[str, dict[str, Any]] | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="wcl", dir="/tmp"))  # sockets need short names
        self.port, self.dashboard = free_port(), free_port()
        self.store, self.kinds = store, kinds
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = os.environ | FAST | {"HOME": str(self.home), "RAY_TMPDIR": str(self.home)}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.env |= {"RAY_API_SERVER_ADDRESS": f"http://{ADDRESS}:{self.dashboard}"}
        self.env.pop("RAY_ADDRESS", None)
        head = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        head += [f"--temp-dir={self.home}/ray", "--num-cpus=0"]
        if kinds is not None:
            self.env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
            config = self.autoscaler(kinds)
            (self.home / "autoscaler.yaml").write_text(yaml.safe_dump(config))
            (self.home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(config))
            head.append(f"--autoscaling-config={self.home}/autoscaler.yaml")
        try:
            self._start(*head)
            self.until(self.answers, 60)
            self.until(self.alive, 60)  # jobs may be taken before the head counts as a node
        except BaseException:
            self.stop()
            raise

    def autoscaler(self, kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Configuration of the fake provider."""
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{ADDRESS}:{self.port}",
            "launch_multiple": True,
            "head_node_id": "f" * 51 + "00000",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        types: dict[str, Any] = {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        }
        for name, kind in kinds.items():
            resources = {key: value for key, value in kind.items() if key != "max"}
            types[name] = {
                "resources": resources | {"object_store_memory": self.store},
                "node_config": {},
                "min_workers": 0,
                "max_workers": kind["max"],
            }
        return {
            "cluster_name": "test",
            "max_workers": sum(kind["max"] for kind in kinds.values()),
            "idle_timeout_minutes": 0.15,
            "provider": provider,
            "head_node_type": HEAD,
            "available_node_types": types,
            "upscaling_speed": 10,
            "file_mounts_sync_continuously": False,
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in UNUSED},
        }

    def add_node(self, cpus: int, *more: str) -> subprocess.Popen[bytes]:
        """One more node, when it is there: two that start at once are in each other's way."""
        before = len(self.alive())
        process = self._start(f"--address={ADDRESS}:{self.port}", f"--num-cpus={cpus}", *more)
        self.until(lambda: len(self.alive()) > before, 60)
        return process

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        given = ["start", "--block", "--disable-usage-stats", f"--node-ip-address={ADDRESS}"]
        given += [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0"]
        given += ["--max-worker-port=0", f"--object-store-memory={self.store}", *words]
        with (self.home / f"node-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen([*RAY, *given], env=self.env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def answers(self) -> bool:
        """Whether the head takes jobs."""
        return isinstance(self.api("api/jobs/"), list)

    def ray(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RAY, *words],
            env=self.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, until the job ends."""
        return self._submit("--working-dir", ".", "--", "python", *words, timeout=timeout)

    def _submit(self, *flags: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Again while the head's agent, which starts jobs, is not there yet."""
        for _ in range(20):
            found = self.ray("job", "submit", *flags, timeout=timeout)
            if "No available agent" not in found.stdout + found.stderr:
                break
            time.sleep(2)
        return found

    def begin(self, name: str, *words: str) -> None:
        """`ray job submit --no-wait` under a name."""
        flags = ["--no-wait", "--submission-id", name, "--working-dir", "."]
        found = self._submit(*flags, "--", "python", *words, timeout=120)
        assert found.returncode == 0, found.stdout + found.stderr

    def status(self, name: str) -> str:
        """SUCCEEDED, FAILED, STOPPED, RUNNING or PENDING. Not by `ray job status`, which takes two
        seconds of CPU."""
        return str(self.api(f"api/jobs/{name}")["status"])

    def logs(self, name: str) -> str:
        return self.ray("job", "logs", name).stdout

    def api(self, path: str) -> Any:
        """An answer of the dashboard."""
        url = f"http://{ADDRESS}:{self.dashboard}/{path}"
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=30
        ) as got:
            return json.loads(got.read())

    def alive(self) -> list[dict[str, Any]]:
        """Nodes of the State API."""
        found = self.api("api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    def nodes(self) -> dict[str, int]:
        """Nodes of each kind of the autoscaler, told apart by their CPUs."""
        cpus = [node["resources_total"].get("CPU", 0) for node in self.alive()]
        return {name: cpus.count(float(kind["CPU"])) for name, kind in (self.kinds or {}).items()}

    def metrics_ports(self) -> list[int]:
        """Ports of the nodes' metrics for Prometheus."""
        targets = json.loads((self.home / "ray/prom_metrics_service_discovery.json").read_text())
        return [int(t.rpartition(":")[2]) for group in targets for t in group["targets"]]

    def pids(self) -> list[int]:
        """All processes of the nodes."""
        return [pid for process in self.processes for pid in descendants(process.pid)]

    def driver(self, *calls: tuple[str, ...]) -> list[Any]:
        """What functions of on_nodes.py find, one after the other, in a driver on the head.

        Args:
            calls: name of a function and its arguments.
        """
        script = str(Path(__file__).parent / "on_nodes.py")
        found = subprocess.run(
            [sys.executable, script, json.dumps(calls)],
            env=self.env | {"RAY_ADDRESS": f"{ADDRESS}:{self.port}", "PYTHONPATH": PATHS},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return list(json.loads(found.stdout.rpartition("JSON")[2]))

    def until(self, seen: Callable[[], Any], limit: float) -> Any:
        end = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # not there yet, or busy
                if found := seen():
                    return found
            assert time.monotonic() < end, self.told()
            time.sleep(0.3)

    def told(self) -> str:
        """The last of what the nodes, the autoscaler and the jobs printed."""
        logs = [*self.home.glob("node-*.log"), *self.home.glob("ray/session_latest/logs/monitor.*")]
        logs += self.home.glob("ray/session_latest/logs/job-driver-*")
        return "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in sorted(logs))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """A node with all its processes, at once."""
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in reversed(self.processes):
            self.kill(process)
        here = str(self.home).encode()
        for entry in Path("/proc").iterdir():  # those that Ray started as daemons
            with contextlib.suppress(OSError, ValueError):
                if here in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


PATHS = f"{ROOT}:{Path(__file__).parent}"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
