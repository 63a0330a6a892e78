"""The tables of benchmarks/scale.md are what its script prints from the figures beside it."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scale_paper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_paper", FOLDER / "scale_paper.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_holds_the_printed_tables(scale_paper: ModuleType) -> None:
    figures = json.loads((FOLDER / "scale.json").read_text())
    assert scale_paper.paper(figures) in (FOLDER / "scale.md").read_text()


def test_the_mode_follows_the_rule_of_the_stream(scale_paper: ModuleType) -> None:
    room = scale_paper.SHARE * scale_paper.STORE * 8  # of 64 GPUs
    assert scale_paper.keep_mode(1000, 64, room / 1000, 1.0) == ("raw", False, room)
    assert scale_paper.keep_mode(1000, 64, room / 999, room / 1001)[0] == "encoded"
    assert scale_paper.keep_mode(1000, 64, room, room)[0] == "streaming"
    assert scale_paper.keep_mode(1000, 64, 1.0, 1.0)[:2] == ("raw", True)


def test_workers_take_the_references_of_their_nodes(scale_paper: ModuleType) -> None:
    assert scale_paper.references(32, 16, shared=True) == 16 * 32
    own = 16 + 1  # of two nodes: half of the blocks, and their positions
    assert scale_paper.references(32, 16, shared=False) == 16 * (2 + own) + 32


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "-"), (2e-9, "2 ns"), (0.5, "500 ms"), (90, "90 s"), (600, "10 min"), (2e5, "2.31 d")],
)
def test_times_read_well(scale_paper: ModuleType, seconds: float, text: str) -> None:
    assert scale_paper._s(seconds) == text
