"""Connects to the Ray cluster, and checks that all its nodes see the storage."""

from __future__ import annotations

import logging
import os
import platform
import socket
import uuid
import warnings
from importlib.metadata import version
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wcl_ray import __version__, stopping
from wcl_ray.config import ScaleConfig
from wcl_ray.errors import UserError
from wcl_ray.registry import publish
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

PATIENCE = 60.0  # seconds for all nodes to check the storage


def quiet_ray() -> None:
    """Set the environment of Ray: of its own messages only errors reach the terminal."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    # Ray Train takes one checkpoint per check; at its default of 2 s those of short epochs pile up
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if (os.cpu_count() or 1) < 16:
        # a local Ray ends idle processes beyond the number of CPUs; the next stage needs them again
        os.environ.setdefault("RAY_num_workers_soft_limit", "16")
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # see READ_OPTIONS


def connect(scale: ScaleConfig) -> None:
    """Join the cluster of the job, ``scale.address`` or RAY_ADDRESS, else start a local Ray.

    Raises:
        UserError: no cluster at the address, or it refuses the token.
    """
    quiet_ray()
    if not ray.is_initialized():
        address = scale.address or os.environ.get("RAY_ADDRESS")
        check_address(address)
        try:
            context = ray.init(
                address=scale.address,
                logging_level="ERROR",
                log_to_driver=False,
                configure_logging=True,
            )
        except ray.exceptions.AuthenticationError as error:
            raise UserError(
                f"the Ray cluster {address or 'on this machine'} requires a token; set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token holds it: "
                f"{str(error).partition('. ')[0]}"
            ) from None
        except (ConnectionError, ValueError) as error:
            hint = "; if it requires a token, set RAY_AUTH_MODE=token and the right one"
            raise UserError(f"no Ray cluster can be joined at {address}: {error}{hint}") from None
        except Exception as error:  # Ray has no exception type for it
            if "timed out during startup" not in str(error):
                raise
            raise UserError(
                "Ray did not start in time; the machine may be busy. Try again, or start Ray first "
                "(ray start --head)"
            ) from None
        stopping.take_sigterm()
        say("ray", describe(ray.nodes(), context.dashboard_url))
    publish()
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False
    data.print_on_execution_start = False


def check_address(address: str | None) -> None:
    """Raise a UserError if nothing listens at an address; Ray itself would retry for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster can be joined at {address}: {error}") from None


def describe(nodes: list[dict[str, Any]], dashboard: str | None) -> str:
    """One line: nodes, CPUs, GPUs, and the address of the dashboard."""
    alive = [node for node in nodes if node["Alive"]]
    counts = {
        name: sum(float(node["Resources"].get(name, 0)) for node in alive)
        for name in ("CPU", "GPU")
    }
    text = f"{len(alive)} node(s), {counts['CPU']:g} CPUs, {counts['GPU']:g} GPUs"
    return f"{text}; dashboard http://{dashboard}" if dashboard else text


def environment() -> dict[str, Any]:
    """Versions, and the hardware of the cluster, for ``results.json``."""
    resources = ray.cluster_resources()
    return {
        "versions": {
            "wcl_ray": __version__,
            "python": platform.python_version(),
            "ray": ray.__version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
        "platform": platform.platform(terse=True),
        "nodes": sum(bool(node["Alive"]) for node in ray.nodes()),
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "accelerators": sorted(
            name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")
        ),
        "memory": int(resources.get("memory", 0)),
    }


def check_shared(folder: Folder) -> None:
    """Check that all running nodes can use the folder: each looks for a file that this process
    writes, and writes one of its own. Nodes that join later check for themselves.

    Raises:
        UserError: a node does not see the folder. StorageError: a node cannot use it.
    """
    here = ray.get_runtime_context().get_node_id()
    addresses = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    addresses.pop(here, None)
    if not folder.local or not addresses:
        return
    name = f".seen-{uuid.uuid4().hex[:8]}"
    folder.write(name, b"")
    try:
        checks = [
            _sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
            ).remote(folder, name)
            for node in addresses
        ]
        sees = ray.get(checks, timeout=PATIENCE)
        blind = [node for node, ok in zip(addresses.values(), sees, strict=True) if not ok]
    except ray.exceptions.GetTimeoutError:
        warn(f"not all nodes have checked {folder.uri} within {PATIENCE:.0f} s")
        return
    finally:
        folder.delete(name)
    if blind:
        raise UserError(
            f"storage {folder.path} is not seen by {len(blind)} of {len(addresses) + 1} nodes "
            f"({', '.join(blind[:4])}); use --storage s3://… or gs://…, or a folder that all mount"
        )


@ray.remote(num_cpus=0, scheduling_strategy="DEFAULT", max_retries=3)
def _sees(folder: Folder, name: str) -> bool:
    if not folder.exists(name):
        return False
    folder.check()
    return True
