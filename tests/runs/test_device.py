"""Work without a reserved GPU stays on the CPU, whatever torch sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pictures import png

import wcl_ray
from wcl_ray.config import ModelConfig
from wcl_ray.data.sources.base import FAULT, ID, IMAGE, KEY
from wcl_ray.evaluate import embed as embedding
from wcl_ray.kmeans.nearest import KERNELS
from wcl_ray.kmeans.worker import KMeansWorker
from wcl_ray.model.encoder import EncoderSpec, build_encoder

ASKS = re.compile(r"cuda\.(is_available|device_count|current_device|is_initialized)|\.cuda\(")
SOURCES = Path(wcl_ray.__file__).parent


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch sees and nobody reserved; it takes no tensor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def refuse() -> None:
        raise AssertionError("a CUDA context where no GPU was reserved")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)


class InProcess:
    """Stands for a data set: a task's function runs here."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def map_batches(self, task: Any, *, fn_kwargs: dict[str, Any], **unused: Any) -> pa.Table:
        return pa.concat_tables(list(task(self.rows, **fn_kwargs)))


@pytest.mark.usefixtures("ray_local", "seen")
def test_embedding_without_a_reserved_gpu_stays_on_the_cpu() -> None:
    model = ModelConfig()
    weights = EncoderSpec(model, 16).export(build_encoder(model, 16))
    rows = pa.table(
        {
            ID: pa.array(range(8), pa.int64()),
            KEY: pa.nulls(8, pa.string()),
            FAULT: pa.nulls(8, pa.string()),
            IMAGE: pa.array([png(i) for i in range(8)], pa.large_binary()),
        }
    )
    found: Any = embedding.embed(InProcess(rows), weights, store_size=16, views=True)  # type: ignore[arg-type]
    assert len(found) == 8
    (embedder,) = embedding._CACHE.values()
    assert embedder.device.type == "cpu"
    embedding._CACHE.clear()


@pytest.mark.usefixtures("seen")
def test_kmeans_with_the_torch_kernel_stays_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    x, c = (rng.standard_normal((n, 8), dtype=np.float32) for n in (500, 7))
    assert np.array_equal(KERNELS["torch"](c, False)(x), KERNELS["gemm"](c, False)(x))
    shard = KMeansWorker(False, "torch", 1, 0)
    shard.loaded = np.arange(500), x
    rows = shard._rows(1.0, 20, 8)
    assert rows.on_device.device.type == "cpu"
    assert np.array_equal(shard._nearest(c)(rows.on_device), KERNELS["gemm"](c, False)(rows.x))


def test_nothing_asks_torch_whether_there_is_a_gpu() -> None:
    """The device follows from what was reserved; Ray Train says it to its workers."""
    files = sorted(SOURCES.rglob("*.py"))
    assert len(files) > 80
    asking = [str(f.relative_to(SOURCES)) for f in files if ASKS.search(f.read_text())]
    assert asking == []
    trained = [f.name for f in files if "train.torch.get_device(" in f.read_text()]
    assert trained == ["worker.py"]
