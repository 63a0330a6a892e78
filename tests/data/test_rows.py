from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from wcl_ray.data.rows import take_rows


@pytest.mark.parametrize("rows", [[5, 0, 5, 11, 3], [], [11], list(range(12))])
@pytest.mark.parametrize("cuts", [[0, 12], [0, 4, 4, 9, 12]])
def test_rows_of_a_table_in_any_chunks(rows: list[int], cuts: list[int]) -> None:
    whole = pa.table({"id": range(12), "file": [b"x" * n or None for n in range(12)]})
    ends = itertools.pairwise(cuts)
    table = pa.concat_tables([whole.slice(start, stop - start) for start, stop in ends])
    taken = take_rows(table, np.array(rows, np.int64))
    assert taken.to_pylist() == [whole.to_pylist()[row] for row in rows]
    assert taken.schema == whole.schema
