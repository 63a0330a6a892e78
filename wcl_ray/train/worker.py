"""The loop of one training worker: the only file that talks to ``ray.train`` while training.

Per step: a composed uint8 batch of this worker → device → two views → embeddings → gather →
Cl-InfoNCE → one optimiser step. The batch is global: every worker has an equal part of it and the
gradient is that of one process with the whole batch, but for batch norm on CPUs and the masks of
dropout (see :mod:`wcl_ray.model.gather`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from wcl_ray.config import Config
from wcl_ray.data import sampler
from wcl_ray.data.augment import Augment
from wcl_ray.data.deal import Places
from wcl_ray.data.homes import number_homes, places_of
from wcl_ray.data.reader import Batch, Reader
from wcl_ray.data.stream import Stream
from wcl_ray.errors import StorageError, UserError, find_user_error
from wcl_ray.limits import no_room
from wcl_ray.model.encoder import build_encoder
from wcl_ray.model.gather import gather, synchronised
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.optim import build_optimizer, clip_gradients, learning_rate
from wcl_ray.storage import NOT_SEEN, Folder, storage_error, told
from wcl_ray.train import checkpoint as store
from wcl_ray.train.averager import MetricAverager
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.failure import WorkerFailure
from wcl_ray.train.step import Progress, batch_loss, seed_step

SYNC_STEPS = 10  # steps between exchanges of metrics, faults and checkpoint decisions


@dataclass(frozen=True)
class Task:
    """What the driver hands to every worker.

    Attributes:
        clusters: reference to int32 (N, G), cluster of each position per granularity; -1 =
            singleton.
        images: N, number of training images.
        fingerprint: of the assignment; a checkpoint of another one is refused.
        audit: folder for the ids of every step, or None.
        until: epoch before which this round ends.
        run: folder of the run, which every worker has to see.
        start: last checkpoint of the round before, whose weights, optimiser and position go on.
    """

    config: Config
    stream: Stream
    clusters: Any
    images: int
    fingerprint: str
    queue: Any
    audit: Folder | None = None
    until: int = 0
    run: Folder | None = None
    start: ray.train.Checkpoint | None = None


def train_worker(options: dict[str, Any]) -> None:
    """Entry point of Ray Train; ``options["task"]`` is a :class:`Task`."""
    logging.getLogger("ray.train.v2._internal.execution.context").setLevel(logging.WARNING)
    task: Task = options["task"]
    try:
        Worker(task).run()
    except (ray.exceptions.RayActorError, StorageError):
        raise  # the first tells Ray Train whether a node was preempted, the second may pass
    except Exception as error:
        raise find_user_error(error) or no_room(error) or WorkerFailure.of(error) from None


def upload(storage: Any, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Ray Train's upload, in a thread; what it leaves of a failed one takes no room."""
    try:
        kept: ray.train.Checkpoint = storage.persist_current_checkpoint(checkpoint, name)
        return kept
    except OSError as error:
        size = sum(file.stat().st_size for file in Path(checkpoint.path).glob("*"))
        path = storage.build_checkpoint_path_from_name(name)
        with contextlib.suppress(OSError):
            storage.storage_filesystem.delete_dir(path)
        shutil.rmtree(checkpoint.path, ignore_errors=True)
        raise storage_error(path, error, size) from error


class Worker:
    def __init__(self, task: Task) -> None:
        self.task, self.config = task, task.config
        if task.run is not None and not task.run.exists("config.json"):
            node = ray.util.get_node_ip_address()
            raise UserError(NOT_SEEN.format(where=task.run.path, node=node))
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)) or 1
        if self.device.type == "cpu":
            torch.set_num_threads(cpus)
        torch.manual_seed(self.config.seed)
        torch.use_deterministic_algorithms(self.config.train.deterministic, warn_only=True)
        self._build()
        batch = self.config.train.batch_size
        self.batch = batch - batch % self.world
        self.clusters = ray.get(task.clusters)
        self.reader = Reader(
            task.stream,
            self.clusters,
            rank=self.rank,
            world=self.world,
            batch_size=self.batch,
            seed=self.config.seed,
            group=self.config.clusters.samples_per_cluster,
            threads=max(1, cpus),
            pin=self.device.type == "cuda",
            places=self._places(),
            augment=self.augment if self.config.data.crops_files else None,
        )
        self.meter = MetricAverager(self.device, self.world)
        self.last_checkpoint = time.monotonic()

    def _places(self) -> Places | None:
        """Where dealt blocks and the workers are at this start, the same on all of them."""
        if self.task.stream.shared:
            return None
        here = bytes.fromhex(ray.get_runtime_context().get_node_id())
        everyone = gather(torch.tensor([list(here)], dtype=torch.uint8, device=self.device))
        names, ranks = np.unique(everyone.cpu().numpy(), axis=0, return_inverse=True)
        found = torch.empty(len(self.task.stream.blocks) + 1, dtype=torch.int64, device=self.device)
        if self.rank == 0:
            numbers, largest = number_homes(self.task.stream, [n.tobytes().hex() for n in names])
            found.copy_(torch.from_numpy(np.append(numbers, largest)))
        if self.world > 1:
            dist.broadcast(found, 0)
        *blocks, largest = found.tolist()
        return places_of(np.array(blocks), ranks.reshape(-1), self.rank, largest)

    def _build(self) -> None:
        config = self.config
        encoder = build_encoder(config.model, config.data.image_size, config.loss.dual)
        encoder = synchronised(encoder, self.device, self.world, config.train.sync_bn)
        encoder = encoder.to(self.device)
        if config.train.channels_last:
            encoder = encoder.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(encoder, config.train)
        self.facts = {"assignment": self.task.fingerprint, "backbone": config.model.backbone}
        self.position = TrainState()
        saved = ray.train.get_checkpoint()
        facts = self.facts if saved is not None else {}  # the round before had other clusters
        saved = saved or self.task.start
        if saved is not None:
            with saved.as_directory() as folder:
                self.position = store.load(folder, encoder, self.optimizer, facts)
        fused = config.train.compile
        self.model: torch.nn.Module = torch.compile(encoder) if fused else encoder  # type: ignore[assignment]
        self.cl_infonce: Any = torch.compile(cl_infonce) if fused else cl_infonce
        self.augment = Augment(config.augment, config.data.image_size, config.seed, fused)
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=ids)
        wants = config.train.precision
        able = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.bf16 = wants == "bf16" or (wants == "auto" and able)

    def run(self) -> None:
        self._say_where()
        epochs = self.config.train.epochs
        for epoch in range(self.position.epoch, self.task.until):
            self.position.epoch = epoch
            if self.position.consumed is None:
                self.position.consumed = sampler.empty_bits(self.task.images)
            self.fresh = sampler.empty_bits(self.task.images)
            self._epoch(epoch)
            if self.position.step == 0:
                raise UserError(
                    f"an epoch has no whole batch of train.batch-size {self.batch}; lower it"
                )
            self.position.epoch, self.position.consumed = epoch + 1, None
            every, look = self.config.train.checkpoint_epochs, self.config.evaluate.every
            final = epoch + 1 == epochs  # the finished encoder is evaluated by the driver
            validate = bool(look) and (epoch + 1) % look == 0 and not final
            if (epoch + 1) % every == 0 or validate or epoch + 1 == self.task.until:
                self._checkpoint(validate)

    def _say_where(self) -> None:
        if self.rank == 0:
            at = f"epoch {self.position.epoch}, step {self.position.step}"
            text = f"going on from {at} with {self.world} worker(s), batches of {self.batch}"
            again = ray.train.get_checkpoint() is not None
            self._push("resume", images=self.position.images, text=text if again else "")

    def _epoch(self, epoch: int) -> None:
        self.started, self.waited, self.counted = time.monotonic(), 0.0, 0
        self.bad_images = 0  # a broken image comes back every epoch
        tables = self._tables() if self.task.stream.mode == "streaming" else None
        batches = iter(self.reader.epoch(epoch, self.position.consumed, tables))
        done = sampler.count_bits(self.position.consumed)
        ahead = self.reader.steps * self.batch
        self.progress = Progress(self.config.train.epochs, epoch, done, ahead)
        self.model.train()
        while True:
            before = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - before
            if batch is None:
                break
            self._step(batch, epoch)
            if self.position.step % SYNC_STEPS == 0:
                self._exchange(epoch)
        self._exchange(epoch, last=True)

    def _tables(self) -> Callable[[], Iterator[pa.Table]]:
        """Blocks of this worker's part of the source, without the images of this epoch's past."""
        import ray.train.collective

        shards = None
        if self.rank == 0:
            dataset = self.task.stream.dataset(self.position.consumed)
            shards = dataset.streaming_split(self.world, equal=True)
        shard = ray.train.collective.broadcast_from_rank_zero(shards)[self.rank]
        return lambda: iter(shard.iter_batches(batch_size=None, batch_format="pyarrow"))

    def _step(self, batch: Batch, epoch: int) -> None:
        images = batch.images.to(self.device, non_blocking=True)
        aspect = batch.aspect.to(self.device, non_blocking=True)
        ids = batch.ids.to(self.device, non_blocking=True)
        rows = torch.column_stack([batch.clusters, batch.valid])  # copied and gathered at once
        rows = rows.to(self.device, non_blocking=True)
        rate = learning_rate(self.progress.share, self.config.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_step(self.config.seed, self.position.step, self.rank)
        views = self.augment.two_views(images, aspect, ids, epoch)
        if self.config.train.channels_last:
            views = views.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            heads = self.model(views)
        result = batch_loss(heads, rows, self.rank, self.config.loss, self.cl_infonce)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        norm = clip_gradients(self.model, self.config.train.clip)
        self.optimizer.step()
        self.meter.add(result, norm)
        self._advance(batch, epoch)

    def _advance(self, batch: Batch, epoch: int) -> None:
        self.position.step += 1
        self.position.images += self.batch
        self.progress.add(self.batch)
        self.counted += self.batch
        sampler.set_bits(self.fresh, batch.positions.numpy())
        if self.task.audit is not None:
            row = np.column_stack([batch.ids.numpy(), batch.positions.numpy()])
            name = f"{epoch:04d}/{self.position.step:08d}-{self.rank:04d}-of-{self.world:04d}.bin"
            self.task.audit.write(name, row.astype("<i8").tobytes())
        steps = self.config.train.checkpoint_steps
        if steps and self.position.step % steps == 0:
            self._checkpoint()

    def _exchange(self, epoch: int, last: bool = False) -> None:
        """Average the metrics over workers, add up faults, agree on a checkpoint by the clock."""
        minutes = self.config.train.checkpoint_minutes
        overdue = minutes > 0 and time.monotonic() - self.last_checkpoint > 60 * minutes
        faults = self.reader.take_faults()
        told = [self._push("fault", key=key, reason=reason) for key, reason in faults]
        if told:  # another rank may end the run after this exchange
            ray.wait(told, num_returns=len(told), timeout=5)
        asked = float(overdue and self.rank == 0)
        means, (due, bad, wait) = self.meter.exchange(asked, len(faults), self.waited)
        self.bad_images += int(bad)
        if self.bad_images > self.config.data.max_bad * self.task.images:
            raise UserError(
                f"{self.bad_images} of {self.task.images} images cannot be decoded, more than "
                f"data.max-bad {self.config.data.max_bad:.1%} allows; faults.jsonl lists them"
            )
        if means and not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is not finite at step {self.position.step}; lower --train.lr or raise "
                "--loss.temperature, then start under a new --name"
            )
        if means and self.rank == 0:
            self._log(epoch, means, wait / self.world)
        if due and not last:
            self._checkpoint()

    def _log(self, epoch: int, means: dict[str, float], wait: float) -> None:
        seconds, position = time.monotonic() - self.started, self.position
        speed = self.counted / seconds
        self._push(
            "train",
            epoch=epoch,
            epochs=self.progress.epochs,
            share=self.progress.of_epoch,
            step=position.step,
            images=position.images,
            **means,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_second=speed,
            data_wait=min(1.0, wait / seconds),
            eta_seconds=self.progress.images_left / speed,
            workers=self.world,
            time=time.time(),
        )

    def _push(self, kind: str, **row: Any) -> Any:
        return self.task.queue.push.remote({"kind": kind, **row})

    def _merge_consumed(self) -> None:
        """Bring every worker's new images into everybody's set of consumed images.

        Workers never share an image, so the sum of their packed bits is their union.
        """
        if self.position.consumed is None:
            return
        fresh = torch.from_numpy(self.fresh).to(self.device)
        if self.world > 1:
            dist.all_reduce(fresh)
        self.position.consumed |= fresh.cpu().numpy()
        self.fresh = np.zeros_like(self.fresh)

    def _checkpoint(self, validate: bool = False) -> None:
        self._merge_consumed()
        saved = None
        if self.rank == 0:
            saved = self._save()
        storage = ray.train.get_context().get_storage()
        where = {"epoch": self.position.epoch, "step": self.position.step}
        task = ray.train.ValidationTaskConfig(fn_kwargs=where) if validate else False
        ray.train.report(
            where,
            checkpoint=saved,
            validation=task if saved is not None else False,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=functools.partial(upload, storage),
        )
        self.last_checkpoint = time.monotonic()

    def _save(self) -> ray.train.Checkpoint:
        with told(os.environ.get("TMPDIR", "/tmp")):
            folder = tempfile.mkdtemp(prefix="wcl-checkpoint-")
        try:
            store.save(folder, self.model, self.optimizer, self.position, self.facts)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return ray.train.Checkpoint.from_directory(folder)
