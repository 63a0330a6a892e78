"""Blocks that are dealt to workers: equal parts, few at a time, those of the own node first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from runs import check_exactly_once, config  # noqa: F401

from wcl_ray.config import Config
from wcl_ray.data import stream
from wcl_ray.data.deal import Places, deal, rows_of, windows
from wcl_ray.runs.pretrain import pretrain


@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_workers_have_equal_parts_and_first_their_own(
    counts: list[int], ranks: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, blocks = np.array(counts), rng.integers(-1, 4, len(counts))
    places = Places(blocks, np.array(ranks))
    parts = deal(rows, places, rng)
    share = rows.sum() // len(ranks)
    assert [rows_of(part) for part in parts] == [share] * len(ranks)
    seen = [(b, row) for part in parts for b, start, stop in part for row in range(start, stop)]
    assert len(seen) == len(set(seen))
    assert all(row < rows[b] for b, row in seen)
    for node in range(4):  # as much as there is, but for the rows that do not divide
        own = [part for part, where in zip(parts, ranks, strict=True) if where == node]
        there = rows[blocks == node].sum()
        local = sum(rows_of([p for p in part if blocks[p[0]] == node]) for part in own)
        assert local >= min(share * len(own), there // max(1, len(own)) * len(own))


@given(
    sizes=st.lists(st.integers(1, 30), max_size=20), window=st.integers(1, 80),
    local=st.integers(1, 12), max_blocks=st.integers(1, 6),
)  # fmt: skip
@example(sizes=[1, 1, 3, 1, 1, 1, 1, 3], window=6, local=4, max_blocks=5)  # leftovers of 2 blocks
def test_windows_have_few_blocks(
    sizes: list[int], window: int, local: int, max_blocks: int
) -> None:
    pieces = [(number, 0, size) for number, size in enumerate(sizes)]
    ends = windows(pieces, window, local, max_blocks)
    assert all(end % local == 0 for end in ends)
    assert (ends or [0])[-1] == sum(sizes) // local * local
    block = np.repeat(np.arange(len(sizes)), sizes)
    for begin, end in zip([0, *ends], ends, strict=False):
        held = len(set(block[begin:end]))
        short = block[: begin + local]  # one batch may need more
        assert held <= max(max_blocks, len(set(short[begin:])) + 1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_on_dealt_crops(
    config: Config,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two workers deal the blocks among themselves, and cut their views out of the files."""
    monkeypatch.setattr(stream, "REPLICATED", 0.0)
    config = replace(
        config,
        data=replace(config.data, image_size=72, keep="encoded"),
        train=replace(config.train, precision="float32"),
        scale=replace(config.scale, workers="2", cpus_per_worker=0.5, grows="yes", gpu="no"),
    )
    results = pretrain(config)
    text = capsys.readouterr().out
    assert "encoded: " in text
    assert "dealt to 8 blocks" in text
    images = results["variants"]["attributes"]["train_images"]
    check_exactly_once(Path(config.storage) / "one", images, 24, 2)
