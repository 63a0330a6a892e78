"""What notebooks and programs use: ``from wcl_ray import …``."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import wcl_ray
from wcl_ray import Run, load_encoder
from wcl_ray.config import ModelConfig
from wcl_ray.data.decode import decode_batch
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import EncoderSpec, build_encoder

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "stored/run"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(
        str(ROOT / "docs/python.md"), module_relative=False, optionflags=doctest.ELLIPSIS
    )
    assert result.attempted > 10
    assert not result.failed


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, ray_local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_local)
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [
        str(output["data"].get("text/html", output["data"]["text/plain"]))
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "execute_result"
    ]
    table, page, shape, sizes = shown
    assert "<th>knn</th>" in table
    assert page.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shape == "torch.Size([1, 256])"
    assert sizes.startswith("array([")


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        Run(str(tmp_path)).table()
    (tmp_path / "config.json").write_bytes((STORED / "config.json").read_bytes())
    for use in (Run.table, Run.report):
        with pytest.raises(UserError, match=r"is not finished.*finish it with pretrain\.py"):
            use(Run(str(tmp_path)))


@pytest.mark.slow
def test_processes_that_do_not_decode_start_without_torchvision() -> None:
    """It brings torch._dynamo: half of the time that a process needs to start."""
    modules = "wcl_ray.runs.pretrain, wcl_ray.search.trial, wcl_ray.train.worker"
    code = f"import sys, {modules}; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" in imported
    assert not {"torchvision", "timm", "torch._dynamo"} & set(imported)


@pytest.mark.slow
def test_tasks_that_read_start_without_torch() -> None:
    """Nor do those that decode a small PNG, or count metadata, need it."""
    code = (
        "import io, sys, PIL.Image, wcl_ray.runs.preflight, wcl_ray.clusters.metadata; "
        "from wcl_ray.data.decode import decode_batch; sink = io.BytesIO(); "
        "PIL.Image.new('RGB', (16, 16)).save(sink, 'PNG'); "
        "assert not decode_batch([sink.getvalue()], 16).faults; print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = run.stdout.split()
    assert "ray.data" in imported
    assert not {"torch", "torchvision"} & set(imported)


def test_import_is_lazy() -> None:
    """Neither the package nor its configuration brings torch, Ray or NumPy with it."""
    code = "import sys, wcl_ray; wcl_ray.Config; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "faiss"} & set(run.stdout.split())


def test_names_of_the_package() -> None:
    assert set(wcl_ray.__all__) <= set(dir(wcl_ray))
    for name in wcl_ray.__all__:
        assert getattr(wcl_ray, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        wcl_ray.pretrian  # noqa: B018


def export(tmp_path: Path, size: int) -> str:
    torch.manual_seed(0)
    model = ModelConfig()
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(EncoderSpec(model, size).export(build_encoder(model, size)))
    return str(path)


@pytest.mark.parametrize("size", [32, 96])
def test_encoder_takes_files_contents_and_pictures(size: int, tmp_path: Path) -> None:
    encoder = load_encoder(export(tmp_path, size))
    picture = Image.effect_noise((120, 90), 80).convert("RGB")
    path = tmp_path / "a.png"
    picture.save(path)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    features = encoder.encode([path, str(path), buffer.getvalue(), picture])
    assert features.shape == (4, encoder.feature_dim)
    assert torch.equal(features, features[:1].expand(4, -1))
    prepared = encoder.prepare([path])
    assert prepared.shape == (1, 3, size, size)
    encoder(prepared).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_encoder_of_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    encoder = load_encoder(export(tmp_path, 32))
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        encoder.encode([path])
    with pytest.raises(UserError, match="image 0 cannot be read"):
        encoder.encode([b""])
    assert decode_batch([b""], 32).faults
    with pytest.raises(UserError, match="is not a run folder"):
        load_encoder(str(tmp_path / "nothing"))
