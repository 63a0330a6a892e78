"""Rows of Arrow tables that are too large to copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """``table.take(rows)``, copying only these rows.

    Arrow's own joins the chunks of binary columns first, so that a batch of image files costs a
    copy of all files of the table.

    Args:
        rows: int64 (n,).
    """
    batches = table.to_batches()
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    number = np.searchsorted(starts, rows, side="right") - 1  # of the batch that holds each row
    taken = [batch.take(pa.array(rows[number == i] - starts[i])) for i, batch in enumerate(batches)]
    by_batch = np.argsort(number, kind="stable")
    return pa.Table.from_batches(taken, table.schema).take(pa.array(np.argsort(by_batch)))
