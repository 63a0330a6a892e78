"""What a user sees of an error that only one of several workers has, on a real Ray."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray.train
from pictures import png, write_parquet

import wcl_ray.evaluate.validate
import wcl_ray.runs.fit
import wcl_ray.runs.pretrain
from wcl_ray.cli import run_job
from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ScaleConfig,
    TrainConfig,
)
from wcl_ray.data.images import open_images
from wcl_ray.data.reader import Reader
from wcl_ray.data.stream import plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.validate import Evaluator
from wcl_ray.model.encoder import EncoderSpec
from wcl_ray.runs.clusters import build_clusters
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.storage import Folder
from wcl_ray.train.worker import Worker, train_worker

N, BATCH = 96, 8
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see this folder
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        data=DataConfig(path=write_parquet(tmp_path / "data", N), image_size=16),
        clusters=ClustersConfig(columns=("colour", "marks"), top_k=(4,)),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=BATCH, epochs=3),
        scale=ScaleConfig(workers="2", cpus_per_worker=0.5),
        storage=str(tmp_path / "runs"),
        name="one",
    )


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[int]]:
    """Has every worker leave a file when it starts, and rank 1 changed before it does."""
    folder = tmp_path / "starts"
    folder.mkdir()

    def use(change: Callable[[dict[str, Any]], None] = lambda options: None) -> None:
        def start(options: dict[str, Any]) -> None:
            rank = ray.train.get_context().get_world_rank()
            (folder / f"{time.time_ns()}-{rank}").touch()
            if rank == 1:
                change(options)
            try:
                train_worker(options)
            except Exception:
                (folder / "raised").write_text(str(time.time()))
                raise

        monkeypatch.setattr(wcl_ray.runs.fit, "train_worker", start)

    use.ranks = lambda: sorted(int(p.name[-1]) for p in folder.glob("*-*"))  # type: ignore[attr-defined]
    use.raised = lambda: float((folder / "raised").read_text())  # type: ignore[attr-defined]
    return use


def no_mount(options: dict[str, Any]) -> None:
    task = options["task"]
    options["task"] = replace(task, run=task.run / "elsewhere")


def fault_in_second_epoch(options: dict[str, Any]) -> None:
    epoch = Worker._epoch

    def fails(self: Worker, number: int) -> None:
        if number:
            while not Path(self.config.storage, "evaluating").exists():
                time.sleep(0.1)
            raise UserError("rank 1 alone knows")
        epoch(self, number)

    Worker._epoch = fails  # type: ignore[method-assign]


def no_division(options: dict[str, Any]) -> None:
    def divides(self: Worker) -> None:
        raise ZeroDivisionError("by a worker")

    Worker._push_start = divides  # type: ignore[method-assign]


class LongEvaluator(Evaluator):
    """Evaluates for five minutes, also in a process that ignores SIGINT."""

    storage: ClassVar[str]

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return unpickle_in_background, (values,)

    def measure(self, weights: bytes, gpu: bool) -> dict[str, Any]:
        Path(self.storage, "evaluating").touch()
        for _ in range(3000):  # a task is cancelled between two of its calls
            time.sleep(0.1)
        return {}


def unpickle_in_background(values: dict[str, Any]) -> LongEvaluator:
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a shell started with &
    return LongEvaluator(**values)


def ends_with(config: Config, starts: Any, message: str) -> None:
    """The run ends with the one message, soon, and nobody is started again."""
    with pytest.raises(UserError, match=message) as caught:
        pretrain(config)
    seconds = time.time() - starts.raised()
    print(f"ended {seconds:.1f} s after the error")
    assert seconds < 45  # about 3 s on a free machine; a collective waits for 30 minutes
    assert "\n" not in str(caught.value)
    assert starts.ranks() == [0, 1]


def test_a_mount_that_one_node_lacks(config: Config, starts: Any) -> None:
    starts(no_mount)
    ends_with(config, starts, "elsewhere is not seen by the node")


def test_a_batch_of_one_rank_that_cannot_be_decoded(
    config: Config, starts: Any, tmp_path: Path
) -> None:
    config = replace(config, data=replace(config.data, keep="encoded", max_bad=1.0))
    broken = first_images(config, rank=1)
    images = [png(i)[:150] if i in broken else png(i) for i in range(N)]  # headers are good
    write_parquet(tmp_path / "data", N, image=pa.array(images, pa.binary()))
    starts()
    ends_with(config, starts, "none of 4 images of a batch can be decoded")


def first_images(config: Config, rank: int) -> set[int]:
    """Ids of the first batch of a worker."""
    images = open_images(config.data, config.storage, config.seed)
    table = build_clusters(config, images, show=False)[0].assignment
    stream = plan_stream(images.train, table.ids, config.data, table.clusters[:, 0])
    reader = Reader(
        stream, table.clusters, rank=rank, world=2, batch_size=BATCH, seed=config.seed,
        group=config.clusters.samples_per_cluster,
    )  # fmt: skip
    return set(table.ids[reader.order(0, None)[0]].tolist())


def test_an_error_does_not_wait_for_an_evaluation(
    config: Config, starts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wcl_ray.runs.pretrain, "Evaluator", LongEvaluator)
    monkeypatch.setattr(LongEvaluator, "storage", config.storage, raising=False)
    starts(fault_in_second_epoch)
    ends_with(replace(config, evaluate=EvaluateConfig(every=1)), starts, "rank 1 alone knows")
    assert (tmp_path / "runs/evaluating").exists()


def test_the_traceback_of_a_worker_is_shown_once(
    config: Config, starts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    starts(no_division)
    with pytest.raises(SystemExit) as end:
        run_job(lambda: pretrain(replace(config, scale=replace(config.scale, max_failures=1))))
    assert end.value.code == 1
    assert starts.ranks() == [0, 0, 1, 1]
    out, errors = capsys.readouterr()
    assert "warning: worker 1 failed: ZeroDivisionError: by a worker" in out
    assert "Traceback" not in out
    first = "error: worker 1 failed: ZeroDivisionError: by a worker\nTraceback (most recent"
    assert errors.startswith(first)
    assert errors.count("Traceback") == 1
    assert "in divides" in errors
    assert errors.endswith("\nZeroDivisionError: by a worker\n")


def test_an_evaluation_that_fails_is_told(config: Config, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    queue = SimpleNamespace(push=SimpleNamespace(remote=rows.append))
    evaluator: Any = SimpleNamespace(encoder=EncoderSpec(config.model, 16))
    empty = ray.train.Checkpoint(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        wcl_ray.evaluate.validate.validate(
            empty, 2, 9, evaluator=evaluator, queue=queue, run=Folder(str(tmp_path))
        )
    assert [row["kind"] for row in rows] == ["warning"]
    assert rows[0]["text"].startswith("no evaluation after epoch 2: FileNotFoundError")
