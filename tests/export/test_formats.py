"""Every format gives the same features, loaded by the library that it is meant for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, untrained_run

from wcl_ray import load_encoder
from wcl_ray.config import DataConfig
from wcl_ray.errors import StorageError, UserError
from wcl_ray.export import TrainedEncoder, check_features
from wcl_ray.registry import EXPORTS
from wcl_ray.runs.export import export_run

SIZE = 72  # above 64, so that ResNets have their library's stem


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of several families of backbones."""
    folder = tmp_path_factory.mktemp("runs")
    for name, backbone, size in (
        ("resnet", "resnet18", SIZE),
        ("vit", "timm:test_vit", SIZE - SIZE % 16),
        ("small", "small", 16),
        ("stem", "resnet18", 32),
    ):
        data = DataConfig(path="photos/birds", label="species", image_size=size)
        untrained_run(folder / name, backbone, data)
    return folder


def pictures(size: int) -> torch.Tensor:
    return torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(3))


def normalised(x: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def wanted(run: Path, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_encoder(str(run))(normalised(x, *IMAGENET))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-5, atol=1e-5))


def test_torchvision(runs: Path, tmp_path: Path) -> None:
    import torchvision

    file = export_run(str(runs / "resnet"), "torchvision", str(tmp_path / "r18.pth"))
    network = torchvision.models.resnet18()
    result = network.load_state_dict(torch.load(file, weights_only=True), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    x = pictures(SIZE)
    with torch.no_grad():
        assert close(network.eval()(normalised(x, *IMAGENET)), wanted(runs / "resnet", x))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_timm(name: str, runs: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    folder = export_run(str(runs / name), "timm", str(tmp_path / "out"))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = network.pretrained_cfg["input_size"][1]
    x = pictures(size)
    with torch.no_grad():
        assert close(network(normalised(x, *IMAGENET)), wanted(runs / name, x))
    config = timm.data.resolve_model_data_config(network)
    assert (config["crop_pct"], config["interpolation"]) == (
        (pytest.approx(72 / 82), "bilinear") if name == "resnet" else (1.0, "bilinear")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_huggingface(name: str, runs: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = export_run(str(runs / name), "huggingface")
    assert folder == str(runs / name / "exports/huggingface")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    encoder = load_encoder(str(runs / name))
    x = pictures(encoder.image_size)
    with torch.no_grad():
        output = model(pixel_values=normalised(x, *IMAGENET)).pooler_output.flatten(1)
        assert close(output, wanted(runs / name, x))
    # its preprocessing is that of the evaluation, up to the rounding of pixels
    smooth = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
    picture = Image.fromarray(smooth).resize((150, 100), Image.Resampling.BICUBIC)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = encoder.prepare([picture])
    assert theirs.shape == ours.shape
    assert (
        float((theirs - ours).abs().mean()) < 0.08
    )  # of standard deviations; one grey level is 0.017
    card = Path(folder, "README.md").read_text()
    for text in (
        "91.4% (species, 4 classes)",
        "birds, 77 train images",
        "AutoModel",
        "library_name",
    ):
        assert text in card
    assert "photos/" not in card  # of paths only their last part


@pytest.mark.slow
def test_onnx(runs: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = export_run(str(runs / "vit"), "onnx", str(tmp_path / "encoder.onnx"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    size = load_encoder(str(runs / "vit")).image_size
    assert (given.name, given.shape[1:]) == ("images", [3, size, size])
    for count in (1, 2, 5):  # the batch is dynamic, and the normalisation inside
        x = pictures(size)[:count]
        [features] = session.run(None, {"images": x.numpy()})
        assert close(torch.from_numpy(features), wanted(runs / "vit", x))
    metadata = session.get_modelmeta().custom_metadata_map
    assert "RGB in [0, 1], not normalised" in metadata["input"]
    assert metadata["kNN"].startswith("91.4%")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_torchscript(runs: Path, tmp_path: Path) -> None:
    file = export_run(str(runs / "small"), "torchscript", str(tmp_path / "small.pt"))
    extra = {"input.txt": ""}
    script = torch.jit.load(file, _extra_files=extra)
    assert b"RGB in [0, 1], not normalised" in bytes(extra["input.txt"])  # type: ignore[arg-type]
    for count in (1, 5):
        x = pictures(16)[:count]
        with torch.no_grad():
            assert close(script(x), wanted(runs / "small", x))


@pytest.mark.parametrize("to", ["torchvision", "timm", "huggingface"])
def test_backbones_without_a_place(to: str, runs: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=rf"--to {to} does not take .*'small'.*use --to onnx or"):
        export_run(str(runs / "small"), to, out)
    # an encoder of another image size than that library's network takes
    with pytest.raises(UserError, match=r"for images of 32 pixels it has a 3×3 stem"):
        export_run(str(runs / "stem"), to, out)
    if to == "torchvision":
        with pytest.raises(UserError, match=r"'timm:test_vit': it is not torchvision's"):
            export_run(str(runs / "vit"), to, out)
    assert not Path(out).exists()


def test_other_statistics_are_in_the_files(runs: Path, tmp_path: Path) -> None:
    """An encoder that started from weights with another normalisation keeps it."""
    timm = pytest.importorskip("timm")
    from wcl_ray.config import ModelConfig
    from wcl_ray.model.encoder import EncoderSpec
    from wcl_ray.runs.folder import ENCODER

    shutil.copytree(runs / "vit", tmp_path / "run")
    half = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)
    spec = EncoderSpec(ModelConfig(backbone="timm:test_convnext"), 40, statistics=half)
    (tmp_path / "run" / ENCODER).write_bytes(spec.export(spec.build()))
    x = pictures(40)
    expected = wanted(tmp_path / "run", x)
    script = torch.jit.load(export_run(str(tmp_path / "run"), "torchscript"))
    with torch.no_grad():
        assert close(script(x), expected)
    network = timm.create_model(
        "local-dir:" + export_run(str(tmp_path / "run"), "timm"), pretrained=True
    ).eval()
    cfg = network.pretrained_cfg
    assert tuple(cfg["mean"]) == half[0]
    with torch.no_grad():
        assert close(network(normalised(x, cfg["mean"], cfg["std"])), expected)


def test_other_features_are_refused(runs: Path) -> None:
    encoder = TrainedEncoder.of((runs / "small/encoder.safetensors").read_bytes(), {})
    assert check_features(encoder, encoder.features) == 0
    with pytest.raises(UserError, match=r"gives other features .*nothing was written"):
        check_features(encoder, lambda images: encoder.features(images) + 1e-3)
    with pytest.raises(UserError, match="gives other features"):
        check_features(encoder, lambda images: encoder.features(images[:1]))


def test_errors_are_one_line(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = str(runs / "small")
    shutil.copytree(runs / "small", tmp_path / "open", ignore=shutil.ignore_patterns("encoder.*"))
    with pytest.raises(UserError, match=r"has no encoder\.safetensors yet: finish it"):
        export_run(str(tmp_path / "open"), "onnx")
    with pytest.raises(UserError, match="is not a run folder"):
        export_run(str(tmp_path), "onnx")
    with pytest.raises(UserError, match=r"--out .*open is a folder; give the name of a file"):
        export_run(small, "torchscript", str(tmp_path / "open"))
    with pytest.raises(UserError, match=r"holds other files \(config\.json|evaluation"):
        export_run(str(runs / "resnet"), "timm", str(tmp_path / "open"))
    with pytest.raises(StorageError, match="Not a directory"):
        export_run(str(runs / "resnet"), "timm", str(tmp_path / "open/evaluation.json"))
    with pytest.raises(UserError, match=r"to 'onyx' is none of .*did you mean onnx\?"):
        EXPORTS.check("onyx")
    for module, to in (("onnxruntime", "onnx"), ("transformers", "huggingface"), ("timm", "timm")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)  # as if it were not installed
            remedy = rf'{module} is not installed: pip install "wcl_ray\[export\]"'
            with pytest.raises(UserError, match=remedy):
                export_run(str(runs / "resnet"), to, str(tmp_path / "none"))


def test_the_tests_have_what_exports_need() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(extras["export"]) <= set(extras["dev"])


def test_onto_object_storage(runs: Path, s3: str) -> None:
    target = export_run(str(runs / "resnet"), "timm", "s3://bugs/exported", endpoint=s3)
    from wcl_ray.storage import Folder

    config = json.loads(Folder(target, s3).read("config.json"))
    assert config["architecture"] == "resnet18"
