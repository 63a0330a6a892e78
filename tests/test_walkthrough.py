"""The walk through docs/guide.md, command by command, on drawings instead of photographs."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
PRODUCTS = 72
TITLE = "## From photographs to similar products\n"
COLOURS = ("red", "green", "blue")
SHAPES = ("rectangle", "ellipse", "line", "pieslice")


def commands() -> list[list[str]]:
    """Of the section, shortened."""
    section = (ROOT / "docs/guide.md").read_text().split(TITLE)[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    small = ["--data.image-size", "16", "--train.batch-size", "16", "--model.projector", "16", "8"]
    small += ["--scale.cpus-per-worker", "1"]
    for words in lines:
        if "--compare" in words:
            words[words.index("50")] = "1"
            words += small
    return lines


def shop(folder: Path) -> None:
    """Drawings of products, and their table."""
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    rows = ["sku,name,category,brand,colour,material,price,tags"]
    for n in range(PRODUCTS):
        kind, colour = SHAPES[n % 4], COLOURS[n // 4 % 3]
        picture = Image.new("RGB", (48, 40), "white")
        left, top = rng.integers(2, 10, 2).tolist()
        box = [left, top, left + 30, top + 24]
        options = {"start": 0, "end": 200} if kind == "pieslice" else {}
        options |= {"width": 5} if kind == "line" else {}
        getattr(ImageDraw.Draw(picture), kind)(box, fill=colour, **options)
        picture.save(folder / f"photos/sku-{n:04d}.jpg")
        tags = "; ".join(tag for tag in ("gift", "kitchen", "new") if rng.random() < 0.5)
        material = ("wood", "steel")[n % 3 == 0]
        name = f"{colour} {kind} {n}"
        rows.append(f"sku-{n:04d},{name},{kind},b{n % 9},{colour},{material},{n % 7}.50,{tags}")
    (folder / "products.csv").write_text("\n".join(rows))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_from_photographs_to_similar_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    printed: dict[str, str] = {}
    for words in commands():
        assert words[0] == "python"
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        printed.setdefault(words[1].split("/")[1], "")
        printed[words[1].split("/")[1]] += capsys.readouterr().out
    assert list(printed) == ["cluster.py", "pretrain.py", "embed.py", "neighbours.py", "export.py"]
    assert f"{PRODUCTS} of {PRODUCTS} images have a row" in printed["cluster.py"]
    assert re.search(r"tags +tags", printed["cluster.py"])
    for k in (3, 6, 12):
        assert f"attributes-{k} " in printed["cluster.py"]
    run = tmp_path / "runs/products"
    assert set(json.loads((run / "results.json").read_text())["variants"]) == {
        "attributes",
        "SimCLR",
    }
    assert "attributes" in (run / "report.html").read_text()
    assert "sku-0012" in printed["neighbours.py"]  # the image itself, as a new one
    assert (tmp_path / "neighbours.html").exists()
    assert (tmp_path / "new.html").exists()
    session = onnxruntime.InferenceSession(str(run / "exports/encoder.onnx"))
    (features,) = session.run(None, {"images": np.zeros((2, 3, 16, 16), np.float32)})
    assert features.shape == (2, 256)
