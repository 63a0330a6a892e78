"""Weights to start from: what files hold, how they fit, and what is said of those that do not."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import wcl_ray.model.architectures
from wcl_ray.config import ModelConfig
from wcl_ray.data.augment import MEAN, STD
from wcl_ray.errors import UserError
from wcl_ray.model.architectures import nearest_architecture
from wcl_ray.model.encoder import (
    IMAGENET,
    EncoderSpec,
    build_backbone,
    load_exported,
    renormalise_inputs,
)
from wcl_ray.model.fit_state import fit_state
from wcl_ray.model.weights import (
    Weights,
    expected_images,
    file_weights,
    published_weights,
    read_state,
    start_encoder,
)

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def saved(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def resnet() -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = torchvision.models.resnet18()
    return network


def spec(backbone: str, image_size: int) -> EncoderSpec:
    return EncoderSpec(ModelConfig(backbone=backbone, projector=(8,)), image_size)


@pytest.mark.parametrize(
    ("prefix", "nest"),
    [
        ("", None),
        ("", "state_dict"),
        ("module.", "model"),
        ("module.encoder_q.", "state_dict"),
        ("backbone.", None),
    ],
)
def test_prefixes_and_checkpoints_around_the_weights(prefix: str, nest: str | None) -> None:
    network = resnet()
    state = {prefix + name: value for name, value in network.state_dict().items()}
    state[prefix.replace("_q", "_k") + "queue"] = torch.zeros(3)
    content = saved(state if nest is None else {nest: state, "epoch": 3, "lr": torch.ones(1)})
    weights = file_weights(content, "x.pth", "resnet18")
    _, export, fit = start_encoder(spec("resnet18", 224), weights, 0)
    assert fit.missing == ()
    assert [name for name in fit.unexpected if "queue" not in name] == []
    backbone = load_exported(export)
    network.fc = nn.Identity()
    x = torch.randn(2, 3, 224, 224)
    assert torch.equal(backbone(x), network.eval()(x))


def test_an_export_of_ours_keeps_its_normalisation() -> None:
    torch.manual_seed(0)
    first = EncoderSpec(ModelConfig(projector=(8,)), 32, statistics=HALF)
    encoder = first.build().eval()
    weights = file_weights(first.export(encoder), "encoder.safetensors", "small")
    assert (weights.statistics, weights.image_size) == (HALF, 32)
    again, export, _ = start_encoder(spec("small", 32), weights, 0)
    assert again.statistics == HALF
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    features = load_exported(export)((images - mean) / std)
    bare = encoder.backbone
    bare._forward_pre_hooks.clear()
    assert torch.allclose(features, bare((images - 0.5) / 0.5), atol=1e-5)


@pytest.mark.slow
def test_a_norm_before_the_classifier_may_be_missing_and_stays_as_seeded() -> None:
    state = build_backbone("convnext_tiny", 224).state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("classifier")}
    _, export, fit = start_encoder(spec("convnext_tiny", 64), Weights("x", state), 7)
    assert fit.missing == ("classifier.0.weight", "classifier.0.bias")
    assert torch.equal(safetensors.torch.load(export)["classifier.0.weight"], torch.ones(768))


def test_a_file_that_lacks_weights_of_a_block_is_refused() -> None:
    state = resnet().state_dict()
    del state["layer4.1.bn2.bias"], state["layer4.1.bn2.running_var"]
    words = r"^2 of the network's 100 weights are not in it \(layer4\.1\.bn2\.bias, layer4"
    with pytest.raises(UserError, match=words):
        fit_state(state, spec("resnet18", 224).build().backbone)


@pytest.mark.parametrize(
    ("source", "backbone"),
    [
        ("resnet18", "resnet34"),
        ("resnet34", "resnet18"),
        ("resnet50", "resnet101"),
        ("resnet101", "resnet50"),
        ("convnext_small", "convnext_tiny"),
        ("efficientnet_b1", "efficientnet_b0"),
        ("swin_s", "swin_t"),
        ("timm:seresnet50", "timm:resnet50"),
    ],
)
def test_a_deeper_or_shallower_network_of_the_family_is_refused(source: str, backbone: str) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        state, network = (build_backbone(name, 224) for name in (source, backbone))
        with pytest.raises(UserError, match=r"weights are (not in it|of blocks that the network)"):
            fit_state({f"module.{k}": v for k, v in state.state_dict().items()}, network)


def test_what_stands_beside_the_backbone_is_no_block() -> None:
    backbone = spec("resnet18", 224).build().backbone
    state = {f"encoder.{name}": value for name, value in resnet().state_dict().items()}
    beside = ("projector.0.weight", "mask_token", "pooler.dense.weight", "decoder_blocks.0.weight")
    state |= {f"encoder.{name}": torch.zeros(2) for name in beside}
    state |= {f"ema.{name}": value for name, value in resnet().state_dict().items()}
    fit = fit_state(state, backbone)
    assert (fit.prefix, fit.missing) == ("ema.", ())
    state = {name: value for name, value in state.items() if not name.startswith("ema.")}
    assert set(fit_state(state, backbone).unexpected) == set(beside)


def test_another_architecture_names_the_nearest() -> None:
    weights = file_weights(saved(torchvision.models.resnet34().state_dict()), "w.pth", "resnet50")
    with pytest.raises(UserError, match=r"w\.pth does not fit resnet50.*--model.backbone resnet34"):
        start_encoder(spec("resnet50", 224), weights, 0)


@pytest.mark.slow
def test_only_families_of_like_names_are_built_for_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []

    def build(name: str, size: int) -> nn.Module:
        built.append(name)
        return build_backbone(name, size)

    monkeypatch.setattr(wcl_ray.model.architectures, "build_backbone", build)
    state = {f"module.{k}": v for k, v in build_backbone("densenet169", 224).state_dict().items()}
    assert nearest_architecture(state, "resnet18") == "densenet169"
    assert "efficientnet_b0" not in built  # all weights fit: nothing else is tried
    built.clear()
    del state["module.classifier.bias"]
    assert nearest_architecture(state, "resnet18") == "densenet169"
    assert "densenet201" in built
    assert sum(name.startswith("efficientnet") for name in built) == 1


@pytest.mark.slow
def test_networks_that_compute_their_sizes_are_among_the_nearest() -> None:
    state = build_backbone("regnet_y_400mf", 224).state_dict()
    assert nearest_architecture(state, "resnet18") == "regnet_y_400mf"


@pytest.mark.slow
def test_a_small_stem_does_not_take_published_weights() -> None:
    weights = Weights("w.pth", resnet().state_dict())
    words = (
        r"images of 32 pixels: conv1\.weight has shape \(64, 3, 7.*a --data.image-size above 64$"
    )
    with pytest.raises(UserError, match=words):
        start_encoder(spec("resnet18", 32), weights, 0)
    small = spec("resnet18", 32).build().backbone.state_dict()
    with pytest.raises(UserError, match=r"pixels: conv1.*a --data.image-size of at most 64$"):
        start_encoder(spec("resnet18", 224), Weights("w.pth", small), 0)


@pytest.mark.slow
def test_a_wider_network_of_the_same_names_is_named() -> None:
    wide = torchvision.models.wide_resnet50_2().state_dict()
    words = r"layer1\.0\.conv1\.weight has shape \(128.*; use --model.backbone wide_resnet50_2$"
    with pytest.raises(UserError, match=words):
        start_encoder(spec("resnet50", 224), Weights("w.pth", wide), 0)


@pytest.mark.slow
def test_a_forgotten_backbone_is_named() -> None:
    momentum = {f"encoder_k.{name}": value for name, value in resnet().state_dict().items()}
    state = {name.replace("_k.", "_q."): value for name, value in momentum.items()} | momentum
    with pytest.raises(UserError, match=r"does not fit small .*; use --model.backbone resnet18$"):
        start_encoder(spec("small", 32), Weights("r18.pth", state), 0)


@pytest.mark.slow
def test_a_narrower_transformer_is_named() -> None:
    pytest.importorskip("timm")
    tiny = build_backbone("timm:vit_tiny_patch16_224", 224).state_dict()
    words = r"has shape .*; use --model.backbone timm:vit_tiny_patch16_224$"
    with pytest.raises(UserError, match=words):
        start_encoder(spec("timm:vit_small_patch16_224", 224), Weights("w.pth", tiny), 0)


def state_with(first: str, second: str) -> dict[str, torch.Tensor]:
    """A file with two networks: zeros under the first prefix, ones under the second."""
    names = resnet().state_dict()
    make = {first: torch.zeros_like, second: torch.ones_like}
    return {p + name: like(x) for p, like in make.items() for name, x in names.items()}


@pytest.mark.parametrize(
    ("other", "evaluated"),
    [
        ("student.", "teacher."),
        ("student_backbone.", "teacher_backbone."),
        ("module.encoder_k.", "module.encoder_q."),
        ("momentum_encoder.", "base_encoder."),
        ("target_net.", "online_net."),
    ],
)
def test_of_two_networks_the_evaluated_one_is_taken(other: str, evaluated: str) -> None:
    for pair in ((other, evaluated), (evaluated, other)):
        fit = fit_state(state_with(*pair), resnet())
        assert fit.prefix == evaluated
        assert fit.state["conv1.weight"].mean() == pair.index(evaluated)


def test_of_student_and_teacher_the_teacher_is_taken() -> None:
    student, teacher = ({"backbone.a": torch.full((2,), n)} for n in (1.0, 2.0))
    options = argparse.Namespace(lr=0.1)  # as DINO and MAE keep them
    content = saved({"student": student, "teacher": {"module": 3, **teacher}, "args": options})
    state, _, part = read_state(content, "x.pth")
    assert part == "teacher"
    assert torch.equal(state["backbone.a"], teacher["backbone.a"])
    network = saved({"teacher": resnet().state_dict()})
    assert file_weights(network, "x.pth", "resnet18").source == "x.pth (teacher)"


def test_loaded_weights_are_counted_without_batch_counters() -> None:
    state = {k: v for k, v in resnet().state_dict().items() if "num_batches" not in k}
    del state["fc.bias"]
    assert fit_state(state, resnet()).loaded == 101  # all but it


def test_something_else_is_no_architecture() -> None:
    state = {"a.weight": torch.zeros(3, 3), "b": torch.zeros(2)}
    with pytest.raises(UserError, match="only 0 of the network's 102 weights"):
        fit_state(state, resnet())
    assert nearest_architecture(state, "resnet18") is None


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"no weights", "x.pth", "is not a file of weights"),
        (b"no weights", "x.safetensors", r"is not .* file \(.*\); give .*\.safetensors .*\.pth"),
        (saved({"epoch": 3}), "x.pth", "holds no tensors"),
        (saved([1, 2]), "x.pth", "holds no tensors"),
        (saved({1: torch.ones(1)}), "x.pth", "holds no tensors"),
        (b"", "x.pth", "is not a file of weights"),
        (b"\x80\x02}q\x00h\x07.", "x.pth", "is not a file of weights"),
        (bytes(range(256)), "x.pth", "is not a file of weights"),
        (b"junk\n", "x.pth", "is not a file of weights; give a .safetensors"),
        (b"", "x.safetensors", "is not a safetensors file"),
    ],
)
def test_files_that_hold_no_weights(content: bytes, name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"model.weights {name} {words}"):
        read_state(content, name)


def test_the_export_of_another_backbone() -> None:
    content = safetensors.torch.save({"x": torch.zeros(1)}, {"backbone": "resnet50"})
    with pytest.raises(UserError, match=r"holds a resnet50; use --model\.backbone resnet50"):
        file_weights(content, "x.safetensors", "small")


def test_published_weights_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = resnet()
    best = torchvision.models.ResNet18_Weights.DEFAULT
    name = best.url.rpartition("/")[2]
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub/checkpoints" / name)
    monkeypatch.setattr(type(best), "get_state_dict", unchecked)
    weights = published_weights("resnet18")
    assert (weights.statistics, weights.image_size) == (IMAGENET, 224)
    for key, value in network.state_dict().items():
        assert torch.equal(weights.state[key], value)


def unchecked(self: object, progress: bool = True, check_hash: bool = False) -> object:
    """The cached file without its hash: nobody can make one of the published hash."""
    return torch.hub.load_state_dict_from_url(self.url, progress=progress)  # type: ignore[attr-defined]


def test_published_weights_that_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"weights of resnet18 cannot be downloaded \(no route\)"):
        published_weights("resnet18")
    with pytest.raises(UserError, match="the family 'small' has no published weights"):
        published_weights("small")


def refuse(*given: object, **options: object) -> None:
    raise OSError("no route")


def test_vision_transformers_take_positions_of_another_size() -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    source = spec(name, 224).build().backbone
    weights = file_weights(saved(source.state_dict()), "vit.pth", name)
    assert weights.statistics == HALF  # timm's own of this network
    used, export, fit = start_encoder(spec(name, 96), weights, 0)
    assert fit.state["pos_embed"].shape == (1, 37, 192)
    assert used.statistics == HALF
    assert load_exported(export)(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


def test_a_tag_of_timm_names_the_images_of_its_weights() -> None:
    pytest.importorskip("timm")
    plain, tagged = "timm:vit_tiny_patch16_224", "timm:vit_small_patch16_224.dino"
    assert expected_images(spec(tagged, 224).build().backbone) == (IMAGENET, 224)
    assert expected_images(spec(plain, 224).build().backbone) == (HALF, 224)
    with pytest.raises(UserError, match=r"no model 'vit_small_patch16_224.din'.*_224\.dino"):
        build_backbone("timm:vit_small_patch16_224.din", 224)
    content = safetensors.torch.save({"x": torch.zeros(1)}, {"backbone": plain})
    assert file_weights(content, "x.safetensors", f"{plain}.augreg_in21k").statistics == HALF


def test_what_images_a_library_expects() -> None:
    assert expected_images(nn.Linear(1, 1)) == (IMAGENET, 32)
    assert expected_images(spec("small", 32).build().backbone) == (IMAGENET, 32)
    assert expected_images(spec("resnet18", 224).build().backbone) == (IMAGENET, 224)
    assert file_weights(saved({"a": torch.ones(1)}), "x.pth", "small").image_size == 32


def test_inputs_are_normalised_again_without_new_tensors() -> None:
    backbone = nn.Sequential()
    renormalise_inputs(backbone, HALF)
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (MEAN, STD))
    wanted = (images - 0.5) / 0.5
    assert torch.allclose(backbone.double()((images - mean) / std), wanted, atol=1e-6)
    assert backbone.state_dict() == {}
    with torch.profiler.profile() as profile:
        backbone(images)
    made = {event.key for event in profile.key_averages() if event.key.startswith("aten::")}
    assert made == {"aten::mul", "aten::add"}
