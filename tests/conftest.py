"""Shared fixtures: one local Ray for the whole session, kept quiet and away from other clusters."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import hypothesis
import pytest

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="30",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_num_workers_soft_limit="16",  # idle processes are used again
    RAY_worker_niceness="0",  # at Ray's 15, other work on the machine leaves workers no CPU
    OMP_NUM_THREADS="1",
    LC_ALL="C",  # of jobs and workers: names in any script do not depend on it
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
)

hypothesis.settings.register_profile("suite", deadline=None)  # no test is a matter of time
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def ray_tmp() -> Iterator[str]:
    """A short temporary folder: Ray's sockets live under it and their names may not be long."""
    folder = tempfile.mkdtemp(prefix="wcl", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_local(ray_tmp: str) -> Iterator[str]:
    """A running local Ray with 2 CPUs, and its address: jobs in processes of their own join it."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=500 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
        _temp_dir=ray_tmp,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Endpoint of a real S3 server on loopback with an empty bucket ``bugs``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="bugs")
    yield endpoint
    server.stop()
