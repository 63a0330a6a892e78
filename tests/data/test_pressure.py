"""Reading anew more images than the object store holds."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png

from wcl_ray.config import DataConfig
from wcl_ray.data.sources import open_source
from wcl_ray.data.sources.base import ID
from wcl_ray.data.stream import plan_stream
from wcl_ray.runs.summary import ResourceSummary


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_back_pressure_with_a_slow_trainer(tmp_path: Path) -> None:
    """60,000 images of 12 kB, more than the object store of 500 MB holds, read again."""
    count, files = 60_000, 12
    pictures = [png(n, 64) for n in range(50)]
    step = count // files
    for i in range(files):
        numbers = range(i * step, (i + 1) * step)
        table = pa.table({"id": list(numbers), "image": [pictures[n % 50] for n in numbers]})
        pq.write_table(table, tmp_path / f"part-{i:02d}.parquet", row_group_size=500)
    data = DataConfig(path=str(tmp_path), image_size=64)
    stream = plan_stream(open_source(data), np.arange(count), data)
    assert stream.mode == "streaming"
    usage = ResourceSummary()
    usage.look()
    shard = stream.dataset(None).streaming_split(1, equal=True)[0]
    seen = np.zeros(count, bool)
    for number, table in enumerate(shard.iter_batches(batch_size=512, batch_format="pyarrow")):
        ids = table[ID].to_numpy()
        assert not seen[ids].any()
        seen[ids] = True
        time.sleep(0.1)  # a trainer that is slower than the reading
        if number % 3 == 0:
            usage.look()
    assert seen.all()
    assert sum(len(pictures[n % 50]) for n in range(count)) > usage.capacity
    assert 0 < usage.peak < 0.8 * usage.capacity
    assert usage.spilled == 0
