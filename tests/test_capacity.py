"""What a cluster has and may grow to, what a run takes of it, and the shipped cluster.yaml."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config, validate_config

from wcl_ray.config import Config, EvaluateConfig, ScaleConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.storage import Folder, lasting
from wcl_ray.train.capacity import Capacity, add_up, node_kinds
from wcl_ray.train.fit import divide
from wcl_ray.train.usage import summary

ROOT = Path(__file__).parent.parent


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
    now = [({"CPU": 0.0}, 1.0)]  # the head alone
    there = add_up(now, node_kinds(tree), grows=True)
    assert (there.cpus, there.gpus, there.cpu_only) == (8 * 8 + 4 * 16, 8, 64)
    scale = divide(Config(), there, streamed=True)
    assert (scale.least, scale.most, scale.gpu) == (1, 8, True)  # elastic, from the first node on
    assert scale.cpus == 8  # the whole GPU node: reading goes to the CPU nodes
    alone = add_up(now, [({"CPU": 8.0, "GPU": 1.0}, 8.0)], grows=True)
    assert divide(Config(), alone, streamed=True).cpus == 7  # reading needs one of them
    assert divide(Config(), alone, streamed=False).cpus == 8


def test_several_gpus_a_node() -> None:
    there = add_up([({"CPU": 96.0, "GPU": 8.0}, 2.0)], [], grows=False)
    scale = divide(Config(), there, streamed=False)
    assert (scale.least, scale.most, scale.cpus) == (16, 16, 12)
    assert divide(Config(), there, streamed=True).cpus == 11


@given(
    nodes=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=5),
    streamed=st.booleans(),
)
def test_workers_always_fit(nodes: list[tuple[int, int]], streamed: bool) -> None:
    now = [({"CPU": float(c), "GPU": float(g)}, 1.0) for c, g in nodes]
    there = add_up(now, [], grows=False)
    try:
        scale = divide(Config(train=TrainConfig(batch_size=1024)), there, streamed)
    except UserError:
        assert there.gpus == 0
        assert there.cpus <= 1
        return
    if scale.gpu:
        tight = min((c / g, c) for c, g in nodes if g)
        assert scale.cpus <= max(1.0, tight[0])
    else:
        assert 0 < scale.cpus <= max(c for c, _ in nodes)
        assert scale.cpus * scale.most + (1 if streamed else 0) <= there.cpus


def test_what_does_not_fit() -> None:
    small = Capacity(cpus=2, gpus=0, node_cpus=2)
    config = Config(scale=ScaleConfig(cpus_per_worker=4))
    with pytest.raises(UserError, match=r"4 is more than the cluster's 2 CPUs.*--scale.grows yes"):
        divide(config, small, streamed=False)
    with pytest.raises(UserError, match=r"the cluster has no GPU.*--scale.grows yes"):
        divide(Config(scale=ScaleConfig(gpu="yes")), small, streamed=False)
    one = Capacity(cpus=1, gpus=0, node_cpus=1)
    with pytest.raises(UserError, match="needs 2 CPUs"):
        divide(Config(evaluate=EvaluateConfig(every=1)), one, streamed=False)
    grows = ScaleConfig(gpu="yes", workers="2:4", grows="yes", cpus_per_worker=8)
    empty = replace(small, cpus=0, node_cpus=0, grows=True)
    scale = divide(Config(scale=grows), empty, streamed=True)
    assert (scale.least, scale.most, scale.cpus, scale.gpu) == (2, 4, 8, True)


def test_relative_paths_of_jobs_outlive_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert lasting("runs") == "runs"
    work = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    assert lasting("runs") == str(tmp_path / "home/runs")
    assert lasting("/runs") == "/runs"
    assert lasting("s3://bucket/runs") == "s3://bucket/runs"
    assert Folder("runs").path == str(tmp_path / "home/runs")


def test_start_or_resume_needs_a_name() -> None:
    with pytest.raises(ValueError, match="start-or-resume needs a --name"):
        Config(start_or_resume=True)


def test_summary() -> None:
    figures = {
        "seconds": {"clusters": 3.2, "train": 61.0}, "object_store_peak": 2_000_000,
        "object_store": 500_000_000, "spilled": 12_000, "restored": 5_000,
        "images_per_second": 1234.5, "wait": 0.123, "restarts": 2,
    }  # fmt: skip
    lines = dict(summary(figures))
    assert lines["time"] == "clusters 3 s, train 61 s"
    assert lines["store"] == "peak 2 MB of 500 MB, spilled 12 kB, read back 5 kB"
    assert re.match(r"1,23\d images/s, 12% of the time", lines["workers"])
    assert "workers" not in dict(summary({k: v for k, v in figures.items() if k != "wait"}))
