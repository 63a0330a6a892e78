"""How a cluster is divided between trials: whatever waits must wait for something that ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.config import ScaleConfig
from wcl_ray.errors import UserError
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.resources import DRIVER, LEAST_SPARE, divide


@given(
    cpus=st.floats(1, 500),
    gpus=st.integers(0, 16),
    trials=st.integers(1, 400),
    concurrent=st.integers(0, 50),
    least=st.integers(1, 6),
    more=st.integers(0, 4),
    given_cpus=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    streamed=st.booleans(),
)
def test_trials_leave_room_for_the_tasks_they_wait_for(
    cpus: float,
    gpus: int,
    trials: int,
    concurrent: int,
    least: int,
    more: int,
    given_cpus: float,
    streamed: bool,
) -> None:
    scale = ScaleConfig(workers=f"{least}:{least + more}", cpus_per_worker=given_cpus)
    config = SearchConfig(trials=trials, concurrent=concurrent, scale=scale)
    cluster = {"CPU": cpus, "GPU": float(gpus)}
    try:
        share = divide(config, cluster, cpus, streamed)
    except UserError:  # reading needs a CPU beside each trial, and a worker a GPU
        most = least + more
        assert streamed or cpus < most or 0 < gpus < least or cpus < most * given_cpus + 0.11
        return
    assert 1 <= share.concurrent <= trials
    assert share.concurrent <= (concurrent or max(1, trials // 4))
    assert share.scale.gpu == (gpus > 0)
    if gpus:
        assert share.concurrent * least <= gpus
    if given_cpus:
        assert share.scale.cpus == given_cpus
    held = share.concurrent * (DRIVER + share.scale.max_workers * share.scale.cpus)
    assert held + min(share.spare, LEAST_SPARE) <= cpus + 1e-6  # some task always finds room
    if not given_cpus:
        assert held + share.spare <= cpus + 1e-6
    assert share.scale.cpus > 0
    assert share.spare > 0
    assert share.scale.crowded
    if streamed:
        assert held + 1 <= cpus + 1e-6


def test_two_cpus_carry_two_trials() -> None:
    share = divide(SearchConfig(trials=16), {"CPU": 2.0}, 2.0, streamed=False)
    assert share.concurrent == 2
    assert share.scale.cpus == pytest.approx(0.74)
    assert share.spare == pytest.approx(0.25)
    assert divide(SearchConfig(trials=3), {"CPU": 2.0}, 2.0, streamed=False).concurrent == 1
    assert divide(SearchConfig(trials=16), {"CPU": 1.0}, 1.0, streamed=False).concurrent == 1


def test_gpus_are_dealt_to_workers() -> None:
    cluster = {"CPU": 64.0, "GPU": 8.0}
    config = SearchConfig(trials=64)
    share = divide(config, cluster, 64.0, streamed=False)
    assert (share.concurrent, share.scale.gpu, share.scale.cpus) == (8, True, 6.0)
    two = divide(replace(config, scale=ScaleConfig(workers="2")), cluster, 64.0, streamed=False)
    assert (two.concurrent, two.scale.max_workers) == (4, 2)
    small = divide(config, cluster, 4.0, streamed=False)
    assert small.scale.cpus == 4.0  # no worker is larger than a node
    with pytest.raises(UserError, match="9 workers, but there are only 8 GPUs"):
        divide(replace(config, scale=ScaleConfig(workers="9")), cluster, 64.0, streamed=False)


def test_given_cpus_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    config = SearchConfig(trials=16, concurrent=8, scale=ScaleConfig(cpus_per_worker=1, gpu="no"))
    share = divide(config, {"CPU": 4.0}, 4.0, streamed=False)
    assert share.scale.cpus == 1
    assert share.concurrent * (DRIVER + 1) + share.spare <= 4
    assert f"only {share.concurrent} trials fit" in capsys.readouterr().out
    with pytest.raises(
        UserError,
        match="a trial needs 8 CPUs and part of another for its evaluation, the cluster has 4",
    ):
        divide(
            replace(config, scale=ScaleConfig(cpus_per_worker=8, gpu="no")),
            {"CPU": 4.0}, 4.0, streamed=False,
        )  # fmt: skip
