"""One training worker: set-up, epochs, metrics and checkpoints. The only module that calls
``ray.train`` during training; the step itself is in :mod:`wcl_ray.train.loop`.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from wcl_ray.data.batch import Batch
from wcl_ray.data.blocks import Directory, rows_left
from wcl_ray.data.deal import Places
from wcl_ray.data.homes import number_homes, places_of
from wcl_ray.data.pixels import cpus_for_decoding
from wcl_ray.data.reader import Reader
from wcl_ray.data.stream import Stream
from wcl_ray.errors import StorageError, UserError, find_user_error
from wcl_ray.limits import gpu_full, object_store_full
from wcl_ray.model.encoder import EncoderSpec, load_backbone
from wcl_ray.model.gather import gather, synchronised
from wcl_ray.model.layers import set_training
from wcl_ray.model.loss import cl_infonce
from wcl_ray.model.micro_batches import MicroBatches
from wcl_ray.model.optim import build_optimizer
from wcl_ray.storage import NOT_SEEN, Folder
from wcl_ray.train import checkpoint as store
from wcl_ray.train.checkpoint import TrainState
from wcl_ray.train.failure import WorkerFailure
from wcl_ray.train.loop import Learner
from wcl_ray.train.progress import MetricAverager, Progress

SYNC_STEPS = 10  # steps between exchanges of metrics, faults and checkpoint decisions


@dataclass(frozen=True)
class Task:
    """The driver's input to every worker.

    Attributes:
        clusters: reference to int32 (N, G), cluster of each position per granularity; -1 =
            singleton.
        images: N, number of training images.
        fingerprint: hash of the assignment; checkpoints made with another one are refused.
        audit: folder for the ids of every step, or None.
        until: epoch before which this round ends.
        run: folder of the run, which every worker must be able to read.
        start: last checkpoint of the previous round, from which this one continues.
        similarity: reference to the :class:`wcl_ray.clusters.similarity.MetadataBits` of each
            position for graded positives and methods that need metadata, or None.
        weights: reference to the export that a new encoder takes its backbone from, or None.
    """

    config: Config
    encoder: EncoderSpec
    stream: Stream
    clusters: Any
    images: int
    fingerprint: str
    queue: Any
    audit: Folder | None = None
    until: int = 0
    run: Folder | None = None
    start: ray.train.Checkpoint | None = None
    weights: Any = None
    similarity: Any = None


def train_worker(options: dict[str, Any]) -> None:
    """Entry point of Ray Train; ``options["task"]`` is a :class:`Task`."""
    logging.getLogger("ray.train.v2._internal.execution.context").setLevel(logging.WARNING)
    task: Task = options["task"]
    try:
        Worker(task).run()
    except (ray.exceptions.RayActorError, StorageError):
        raise  # Ray Train checks the first for preemption; the second may be temporary
    except Exception as error:
        explained = find_user_error(error) or object_store_full(error) or gpu_full(error)
        raise explained or WorkerFailure.of(error) from None


class Worker:
    """One of the worker processes: reads its part of each global batch, trains and checkpoints."""

    def __init__(self, task: Task) -> None:
        self.task, self.config = task, task.config
        if task.run is not None and not task.run.exists("config.json"):
            node = ray.util.get_node_ip_address()
            raise UserError(NOT_SEEN.format(path=task.run.path, node=node))
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0)) or 1
        if self.device.type == "cpu":
            torch.set_num_threads(self.cpus)
        torch.manual_seed(self.config.seed)
        torch.use_deterministic_algorithms(self.config.train.deterministic, warn_only=True)
        self.learner = self._build_learner()
        batch = self.config.train.batch_size
        self.batch = batch - batch % self.world
        self.clusters = ray.get(task.clusters)
        metadata = None if task.similarity is None else ray.get(task.similarity)
        if metadata is not None and self.config.loss.positives == "graded":
            weights = torch.from_numpy(metadata.weights)
            self.learner.attribute_weights = weights.to(self.device)
        self.reader = Reader(
            task.stream,
            self.clusters,
            rank=self.rank,
            world=self.world,
            batch_size=self.batch,
            seed=self.config.seed,
            group=self.config.clusters.samples_per_cluster,
            siblings=self.config.loss.negatives == "siblings",
            threads=self.cpus,
            pin=self.device.type == "cuda",
            places=self._places(),
            attributes=None if metadata is None else metadata.bits,
            augment=self.learner.augment if self.config.data.crops_files else None,
        )
        self.averager = MetricAverager(self.device, self.world)
        self.logged = False  # whether this process has averaged metrics
        self.last_checkpoint = time.monotonic()

    def _places(self) -> Places | None:
        """The nodes of the blocks and of the workers, agreed on by all workers."""
        blocks = self.task.stream.blocks
        if self.task.stream.shared or blocks is None:
            return None
        node_id = bytes.fromhex(ray.get_runtime_context().get_node_id())
        node_ids = gather(torch.tensor([list(node_id)], dtype=torch.uint8, device=self.device))
        nodes, ranks = np.unique(node_ids.cpu().numpy(), axis=0, return_inverse=True)

        def homes() -> np.ndarray:
            workers = [node.tobytes().hex() for node in nodes]
            return np.append(*number_homes(Directory(blocks).tables(), workers))

        *homes_of_blocks, largest = self._from_rank_zero(homes, len(blocks) + 1)
        return places_of(np.array(homes_of_blocks), ranks.reshape(-1), self.rank, largest)

    def _rows_left(self) -> np.ndarray | None:
        """int64 (blocks,): rows of each dealt block that are left of the epoch. One worker counts,
        since that takes references to all blocks."""
        blocks = self.task.stream.blocks
        if self.task.stream.shared or blocks is None:
            return None
        return self._from_rank_zero(lambda: rows_left(blocks, self.state.consumed), len(blocks))

    def _from_rank_zero(self, make: Callable[[], np.ndarray], length: int) -> np.ndarray:
        """int64 (length,) that rank 0 makes and all workers get."""
        values = torch.empty(length, dtype=torch.int64, device=self.device)
        if self.rank == 0:
            values.copy_(torch.tensor(make()))
        if self.world > 1:
            dist.broadcast(values, 0)
        return values.cpu().numpy()

    def _build_learner(self) -> Learner:
        """Encoder and optimiser, new or from the last checkpoint."""
        config = self.config
        encoder = self.task.encoder.build()
        encoder = synchronised(encoder, self.device, self.world, config.train.sync_bn)
        encoder = encoder.to(self.device)
        encoder = encoder.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(encoder, config.train)
        self.identity = {"assignment": self.task.fingerprint, "backbone": config.model.backbone}
        self.state = TrainState()
        saved = ray.train.get_checkpoint()
        identity = self.identity if saved is not None else {}  # the last round had other clusters
        saved = saved or self.task.start
        if saved is not None:
            with saved.as_directory() as folder:
                self.state = store.load(folder, encoder, optimizer, identity)
        elif self.task.weights is not None:
            load_backbone(encoder.backbone, ray.get(self.task.weights))
        if encoder.method is not None and ray.train.get_checkpoint() is None:
            encoder.method.begin_round(ray.get(self.task.clusters))
        compiled, micro_batch = config.train.compile, config.train.micro_batch_size
        model: torch.nn.Module = encoder
        if compiled:
            # one graph for each size: both passes of a micro-batch must take the same
            dynamic = False if micro_batch else None
            model = torch.compile(encoder, dynamic=dynamic)  # type: ignore[assignment]
        if micro_batch:
            model = MicroBatches(model, micro_batch)
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=ids)
        precision = config.train.precision
        supported = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return Learner(
            model=model,
            optimizer=optimizer,
            augment=Augment(config.augment, config.data.image_size, config.seed, compiled),
            cl_infonce=torch.compile(cl_infonce) if compiled else cl_infonce,
            train=config.train,
            loss=replace(config.loss, instance_weight=config.instance_weight),
            seed=config.seed,
            device=self.device,
            rank=self.rank,
            method=encoder.method,
            bf16=precision == "bf16" or (precision == "auto" and supported),
            state=self.state,
        )

    def run(self) -> None:
        """Train until the end of the round."""
        self._push_start()
        for epoch in range(self.state.epoch, self.task.until):
            self.state.epoch = epoch
            if self.state.consumed is None:
                self.state.consumed = sampler.empty_bits(self.task.images)
            self.fresh = sampler.empty_bits(self.task.images)
            self._epoch(epoch)
            if self.state.step == 0:
                raise UserError(
                    f"the data have no full batch of train.batch-size {self.batch}; lower it"
                )
            self.state.epoch, self.state.consumed = epoch + 1, None
            every = self.config.evaluate.every
            last = epoch + 1 == self.config.train.epochs  # the driver evaluates the trained encoder
            self._checkpoint(bool(every) and (epoch + 1) % every == 0 and not last)

    def _push_start(self) -> None:
        if self.rank == 0:
            position = f"epoch {self.state.epoch}, step {self.state.step}"
            text = f"resuming from {position} with {self.world} worker(s), batches of {self.batch}"
            resumed = ray.train.get_checkpoint() is not None
            self._push("resume", images=self.state.images, text=text if resumed else "")

    def _epoch(self, epoch: int) -> None:
        self.started, self.waited, self.trained_images = time.monotonic(), 0.0, 0
        self.bad_images = 0  # the same ones fail in every epoch
        tables = self._tables() if self.task.stream.mode == "streaming" else None
        batches = iter(self.reader.epoch(epoch, self.state.consumed, tables, self._rows_left()))
        done = sampler.count_bits(self.state.consumed)
        left = self.reader.steps * self.batch
        self.progress = Progress(self.config.train.epochs, epoch, done, left)
        self.learner.progress = self.progress
        set_training(self.learner.model)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                break
            self.averager.add(self.learner.training_step(batch))
            self._advance(batch, epoch)
            if self.state.step % SYNC_STEPS == 0 or not self.logged:  # a first line soon
                self._exchange(epoch)
        self._exchange(epoch, last=True)

    def _tables(self) -> Callable[[], Iterator[pa.Table]]:
        """Blocks of this worker's part of the source, without the images already consumed."""
        import ray.train.collective

        shards = None
        if self.rank == 0:
            on_gpu = self.device.type == "cuda"
            elsewhere = on_gpu and cpus_for_decoding(self.world, self.cpus) > 0
            dataset = self.reader.dataset(self.state.epoch, self.state.consumed, elsewhere)
            shards = dataset.streaming_split(self.world, equal=True)
        shard = ray.train.collective.broadcast_from_rank_zero(shards)[self.rank]
        return lambda: iter(shard.iter_batches(batch_size=None, batch_format="pyarrow"))

    def _advance(self, batch: Batch, epoch: int) -> None:
        self.state.step += 1
        self.state.images += self.batch
        self.progress.add(self.batch)
        self.trained_images += self.batch
        sampler.set_bits(self.fresh, batch.positions.numpy())
        if self.task.audit is not None:
            row = np.column_stack([batch.ids.numpy(), batch.positions.numpy()])
            name = f"{epoch:04d}/{self.state.step:08d}-{self.rank:04d}-of-{self.world:04d}.bin"
            self.task.audit.write(name, row.astype("<i8").tobytes())
        steps = self.config.train.checkpoint_steps
        if steps and self.state.step % steps == 0:
            self._checkpoint()

    def _exchange(self, epoch: int, last: bool = False) -> None:
        """Average metrics over workers, count faults, and checkpoint if rank 0's clock says so."""
        minutes = self.config.train.checkpoint_minutes
        overdue = minutes > 0 and time.monotonic() - self.last_checkpoint > 60 * minutes
        faults = self.reader.take_faults()
        pushed = [self._push("fault", key=key, reason=reason) for key, reason in faults]
        if pushed:  # another rank may end the run after this exchange
            ray.wait(pushed, num_returns=len(pushed), timeout=5)
        request = float(overdue and self.rank == 0)
        means, (due, bad, waited) = self.averager.exchange(request, len(faults), self.waited)
        self.bad_images += int(bad)
        if self.bad_images > self.config.data.max_bad * self.task.images:
            raise UserError(
                f"{self.bad_images} of {self.task.images} images cannot be decoded, more than "
                f"data.max-bad {self.config.data.max_bad:.1%} allows; faults.jsonl lists them"
            )
        if means and not math.isfinite(means["loss"]):
            raise UserError(
                f"the loss is not finite at step {self.state.step}; lower --train.lr or raise "
                "--loss.temperature, then start under a new --name"
            )
        if means and self.rank == 0:
            self._log(epoch, means, waited / self.world)
        self.logged = True
        if due and not last:
            self._checkpoint()

    def _log(self, epoch: int, means: dict[str, float], waited: float) -> None:
        seconds, state = time.monotonic() - self.started, self.state
        speed = self.trained_images / seconds
        # the first step is slower than the others
        eta = {"eta_seconds": self.progress.images_left / speed} if self.logged else {}
        self._push(
            "train",
            epoch=epoch,
            epochs=self.progress.epochs,
            share=self.progress.of_epoch,
            step=state.step,
            images=state.images,
            **means,
            lr=max(group["lr"] for group in self.learner.optimizer.param_groups),
            images_per_second=speed,
            data_wait=min(1.0, waited / seconds),
            workers=self.world,
            time=time.time(),
            **eta,
        )

    def _push(self, kind: str, **row: Any) -> Any:
        return self.task.queue.push.remote({"kind": kind, **row})

    def _merge_consumed(self) -> None:
        """Add the new images of all workers to every worker's set of consumed images.

        No two workers have the same image, so the sum of their packed bits is the union.
        """
        if self.state.consumed is None:
            return
        fresh = torch.from_numpy(self.fresh).to(self.device)
        if self.world > 1:
            dist.all_reduce(fresh)
        self.state.consumed |= fresh.cpu().numpy()
        self.fresh = np.zeros_like(self.fresh)

    def _checkpoint(self, validate: bool = False) -> None:
        self._merge_consumed()
        saved = None
        if self.rank == 0:
            learner = self.learner
            folder = store.save_local(learner.model, learner.optimizer, self.state, self.identity)
            saved = ray.train.Checkpoint.from_directory(folder)
        storage = ray.train.get_context().get_storage()
        position = {"epoch": self.state.epoch, "step": self.state.step}
        task = ray.train.ValidationTaskConfig(fn_kwargs=position) if validate else False
        ray.train.report(
            position,
            checkpoint=saved,
            validation=task if saved is not None else False,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=functools.partial(store.upload, storage),
        )
        self.last_checkpoint = time.monotonic()
