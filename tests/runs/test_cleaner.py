"""A training that is killed frees the resources of its workers."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import ray
from ray._private import state
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util import placement_group, placement_group_table, remove_placement_group

from wcl_ray.runs.cleaner_callback import CleanerCallback
from wcl_ray.runs.fit import _Trainer

OTHER = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print("started", flush=True)
input()
"""


@ray.remote(num_cpus=0)
class Controller:
    def start(self) -> None:
        self.callback = CleanerCallback()
        self.callback.after_controller_start(SimpleNamespace(run_id="run"))  # type: ignore[arg-type]

    def register(self, group: object) -> None:
        handle = SimpleNamespace(placement_group=group)
        workers = SimpleNamespace(placement_group_handle=handle)
        self.callback.after_worker_group_start(
            SimpleNamespace(get_worker_group_state=lambda: workers)
        )

    def cleaner(self) -> ray.actor.ActorHandle:
        return self.callback._cleaner

    def stop(self) -> None:
        self.callback._stop_cleaner()


def test_trainings_have_it() -> None:
    cleaners = [
        type(callback)
        for callback in _Trainer(print)._create_default_callbacks()
        if isinstance(callback, PlacementGroupCleanerCallback)
    ]
    assert cleaners == [CleanerCallback]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_resources_are_freed_with_two_rays_on_the_machine() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", OTHER], text=True, **pipes) as other:  # type: ignore[call-overload]
        try:
            assert other.stdout.readline() == "started\n"
            group = placement_group([{"CPU": 0.5}])
            assert group.wait(30)
            controller = Controller.remote()
            ray.get(controller.start.remote())
            ray.get(controller.register.remote(group))
            time.sleep(3)  # the cleaner has asked
            assert placement_group_table(group)["state"] == "CREATED"
            ray.kill(controller)
            limit = time.monotonic() + 60
            while placement_group_table(group)["state"] != "REMOVED":
                assert time.monotonic() < limit, "the placement group is still there"
                time.sleep(0.5)
        finally:
            other.communicate("\n")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_it_ends_with_the_training_and_frees_nothing() -> None:
    groups = [placement_group([{"CPU": 0.5}]) for _ in range(2)]
    assert all(group.wait(30) for group in groups)
    controller = Controller.remote()
    ray.get(controller.start.remote())
    cleaner = ray.get(controller.cleaner.remote())
    for group in groups:  # of an elastic training that has grown
        ray.get(controller.register.remote(group))
    ray.get(controller.stop.remote())
    limit = time.monotonic() + 10
    while state.actors(cleaner._actor_id.hex())["State"] != "DEAD":  # the controller lives on
        assert time.monotonic() < limit, "the cleaner is still there"
        time.sleep(0.2)
    ray.kill(controller)
    time.sleep(3)
    assert [placement_group_table(group)["state"] for group in groups] == ["CREATED"] * 2
    for group in groups:
        remove_placement_group(group)
