"""What a cluster has and may grow to, what a run takes of it, and the shipped cluster.yaml."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config, validate_config

from wcl_ray.config import Config, EvaluateConfig, ScaleConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.runs import capacity
from wcl_ray.runs.capacity import Capacity, add_up, node_types
from wcl_ray.runs.summary import summary
from wcl_ray.storage import Folder, resolve_output

ROOT = Path(__file__).parents[2]


def divide(
    config: Config, cluster: Capacity, streamed: bool, decoding: bool = False
) -> capacity.Scale:
    data_tasks = streamed or bool(config.evaluate.every)
    return capacity.divide(config.scale, config.train.batch_size, data_tasks, cluster, decoding)


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


def test_cluster_yaml_fits_rays_schema(tree: dict[str, Any]) -> None:
    filled = prepare_config(copy.deepcopy(tree))
    validate_config(filled)
    with pytest.raises(Exception, match="colour"):
        validate_config(prepare_config({**copy.deepcopy(tree), "colour": "red"}))


def test_cluster_yaml_is_what_the_readme_says(tree: dict[str, Any]) -> None:
    kinds = tree["available_node_types"]
    head = kinds[tree["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # never spot
    for name in ("gpu", "cpu"):
        kind = kinds[name]
        assert kind["min_workers"] == 0
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "wcl-ray-worker"}
    assert "GPU" not in kinds["cpu"]["resources"]
    assert tree["provider"]["cache_stopped_nodes"] is False
    starts = tree["head_start_ray_commands"] + tree["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in c for c in starts if "ray start" in c)


def test_scale_on_the_shipped_cluster(tree: dict[str, Any]) -> None:
    now = [({"CPU": 0.0}, 1)]  # the head alone
    cluster = add_up(now, node_types(tree), grows=True)
    assert (cluster.cpus, cluster.gpus) == (8 * 8 + 4 * 16, 8)
    scale = divide(Config(), cluster, streamed=True)
    assert (scale.min_workers, scale.max_workers, scale.gpu) == (
        1,
        8,
        True,
    )  # elastic, from the first node on
    assert scale.cpus == 7  # CPU nodes may not be had: one is left for reading
    later = add_up([*now, ({"CPU": 16.0}, 1)], node_types(tree), grows=True)
    assert divide(Config(), later, streamed=True).cpus == 8  # reading goes to the CPU node
    assert divide(Config(), cluster, streamed=False).cpus == 8


def test_several_gpus_a_node() -> None:
    cluster = add_up([({"CPU": 96.0, "GPU": 8.0}, 2)], [], grows=False)
    scale = divide(Config(), cluster, streamed=False)
    assert (scale.min_workers, scale.max_workers, scale.cpus) == (16, 16, 12)
    assert divide(Config(), cluster, streamed=True).cpus == 11
    assert divide(Config(), cluster, streamed=True, decoding=True).cpus == 6
    for beside, share in ((16.0, 6), (96.0, 12)):  # of the tasks that read and decode
        nodes = [({"CPU": 96.0, "GPU": 8.0}, 2), ({"CPU": beside}, 1)]
        mixed = add_up(nodes, [], grows=False)
        assert divide(Config(), mixed, streamed=True, decoding=True).cpus == share
        assert divide(Config(), mixed, streamed=True).cpus == 12
    few = add_up([({"CPU": 2.0, "GPU": 4.0}, 1)], [], grows=False)
    assert divide(Config(), few, streamed=False).cpus == 0.5
    with pytest.raises(UserError, match="a CPU besides those of the workers"):
        divide(Config(), add_up([({"CPU": 1.0, "GPU": 1.0}, 2)], [], grows=False), streamed=True)


@given(
    nodes=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=5),
    workers=st.sampled_from(["auto", "1", "2", "3", "7", "1:5"]),
    cpus=st.sampled_from([0.0, 0.5, 1.0, 3.0, 9.0]),
    streamed=st.booleans(),
)
def test_workers_always_find_a_place(
    nodes: list[tuple[int, int]], workers: str, cpus: float, streamed: bool
) -> None:
    cluster = add_up([({"CPU": float(c), "GPU": float(g)}, 1) for c, g in nodes], [], grows=False)
    own = ScaleConfig(workers=workers, cpus_per_worker=cpus)
    try:
        scale = divide(Config(train=TrainConfig(batch_size=1024), scale=own), cluster, streamed)
    except UserError:
        return
    left = [[float(c), g] for c, g in nodes]
    placed = 0
    for node in left:  # each worker takes the first place that is free
        while node[0] + 1e-6 >= scale.cpus and (not scale.gpu or node[1] >= 1):
            node[0] -= scale.cpus
            node[1] -= 1
            placed += 1
            if placed == scale.max_workers:
                break
        if placed == scale.max_workers:
            break
    assert placed >= scale.min_workers
    assert scale.cpus > 0 or scale.gpu  # a GPU node may have no CPU
    if not cpus:
        assert placed == scale.max_workers or scale.gpu  # an elastic run may wait for more GPUs
        assert sum(node[0] for node in left) >= streamed - 1e-6  # something is left to read with


def test_what_fits_is_used() -> None:
    nodes = add_up([({"CPU": 3.0}, 2)], [], grows=False)
    assert divide(Config(scale=ScaleConfig(workers="3")), nodes, streamed=False).cpus == 1
    assert divide(Config(scale=ScaleConfig(workers="2")), nodes, streamed=False).cpus == 3
    single = add_up([({"CPU": 1.0}, 2)], [], grows=False)
    assert divide(Config(scale=ScaleConfig(workers="3")), single, streamed=False).cpus == 0.5


def test_what_does_not_fit() -> None:
    small = Capacity(((2.0, 0, 1),))
    config = Config(scale=ScaleConfig(cpus_per_worker=4))
    with pytest.raises(UserError, match=r"4 is more than the 2 CPUs.*--scale.grows yes"):
        divide(config, small, streamed=False)
    with pytest.raises(UserError, match=r"the cluster has no GPU.*--scale.grows yes"):
        divide(Config(scale=ScaleConfig(gpu="yes")), small, streamed=False)
    one = Capacity(((1.0, 0, 1),))
    with pytest.raises(UserError, match="needs 2 CPUs"):
        divide(Config(evaluate=EvaluateConfig(every=1)), one, streamed=False)
    four = Capacity(((4.0, 0, 1),))
    with pytest.raises(UserError, match="4 workers with 2 CPUs each do not fit, only 2"):
        divide(Config(scale=ScaleConfig(workers="4", cpus_per_worker=2)), four, streamed=False)
    gpu = Capacity(((8.0, 1, 1),))
    with pytest.raises(UserError, match="3 workers with a GPU and 8 CPUs each do not fit, only 1"):
        divide(Config(scale=ScaleConfig(workers="3")), gpu, streamed=False)
    grows = ScaleConfig(gpu="yes", workers="2:4", grows="yes", cpus_per_worker=8)
    scale = divide(Config(scale=grows), Capacity((), grows=True), streamed=True)
    assert (scale.min_workers, scale.max_workers, scale.cpus, scale.gpu) == (2, 4, 8, True)


def test_relative_paths_of_jobs_outlive_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert resolve_output("runs") == "runs"
    work = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    assert resolve_output("runs") == str(tmp_path / "home/runs")
    assert resolve_output("/runs") == "/runs"
    assert resolve_output("s3://bucket/runs") == "s3://bucket/runs"
    assert Folder("runs").path == str(tmp_path / "home/runs")
    work.rmdir()  # as Ray may do while the job runs
    assert Folder("runs").path == str(tmp_path / "home/runs")


def test_start_or_resume_needs_a_name() -> None:
    with pytest.raises(ValueError, match="start-or-resume needs a --name"):
        Config(start_or_resume=True)


def test_summary() -> None:
    figures = {
        "seconds": {"clusters": 3.2, "train": 61.0}, "object_store_peak": 2_000_000,
        "object_store": 500_000_000, "spilled": 12_000, "restored": 5_000,
        "data": {"metadata": {"rows": 5_000, "tasks": 7, "nodes": 2, "cpu_seconds": 1.26}},
        "images_per_second": 1234.5, "data_wait": 0.123, "restarts": 2,
    }  # fmt: skip
    lines = dict(summary(figures))
    assert lines["time"] == "clusters 3 s, train 61 s"
    assert lines["store"] == "peak 2 MB of 500 MB, spilled 12 kB, read back 5 kB"
    assert re.match(r"1,23\d images/s, 12% of the time", lines["workers"])
    assert lines["data"] == "metadata: 5,000 rows, 7 task(s) on 2 node(s), 1.3 s of CPU"
    assert "workers" not in dict(summary({k: v for k, v in figures.items() if k != "data_wait"}))
