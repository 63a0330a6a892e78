"""Above 64 pixels crops are cut out of the files, for training and for evaluation."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import ExifTags, Image

from wcl_ray.config import AugmentConfig, DataConfig, ModelConfig
from wcl_ray.data.augment import Augment, centre_boxes, normalise, resized_crop
from wcl_ray.data.decode import _open, _pixels_for, decode_batch, decode_crops, decode_one
from wcl_ray.data.reader import Reader
from wcl_ray.data.sources import open_source
from wcl_ray.data.stream import plan_stream
from wcl_ray.evaluate.embed import DISTANCE, embed, feature_tensor
from wcl_ray.evaluate.geometry import distances
from wcl_ray.model.encoder import EncoderSpec, build_encoder

SIZE = 80


def photograph(number: int, width: int, height: int, turned: int = 1) -> bytes:
    """A JPEG of smooth colours under fine stripes."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(60, 190, (6, 8, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    stripes = 25 * np.sin(np.arange(width) * 2 * np.pi * 30 / width)
    pixels = pixels + stripes[None, :, None]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turned
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=95, exif=exif)
    return sink.getvalue()


def reference(content: bytes, box: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """The crop out of all of the file's pixels."""
    pixels = torch.from_numpy(decode_one(content))
    height, width = pixels.shape[1:]
    borders = box * torch.tensor([width, height] * 2) - 1e-3
    left, top, right, bottom = borders.round().int().tolist()
    return F.resized_crop(
        pixels, top, left, bottom - top, right - left, [size, size], antialias=True
    )


def detail(crop: torch.Tensor) -> float:
    """How much neighbouring pixels differ."""
    return sum(float(crop.float().diff(dim=dim).abs().mean()) for dim in (-1, -2))


@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("shape", [(150, 110), (260, 200), (900, 700)])
def test_crops_keep_the_resolution_of_the_file(shape: tuple[int, int], turned: int) -> None:
    files: list[bytes | None] = [photograph(n, *shape, turned) for n in range(6)]
    augment, ids = Augment(AugmentConfig(), SIZE, seed=0), torch.arange(6)

    def boxes(rows: torch.Tensor, aspect: torch.Tensor) -> torch.Tensor:
        return augment.boxes(ids[rows], aspect, 3)

    found = decode_crops(files, boxes, 2, SIZE)
    squashed = decode_batch(files, 92)
    assert np.array_equal(found.aspect, squashed.aspect)
    images, aspect = found.tensors()
    assert images.shape == (6, 2, 3, SIZE, SIZE)
    assert found.faults == {}
    wanted = augment.boxes(ids, aspect, 3)
    squash, _ = squashed.tensors()
    before = 0.0
    for row, content in enumerate(files):
        for view in range(2):
            assert content is not None
            expected = reference(content, wanted[row, view]).float()
            crop = images[row, view].float()
            # decoded at a part of its size, where borders fall on other pixels
            assert (crop - expected).abs().mean() < 8
            assert detail(crop) == pytest.approx(detail(expected), rel=0.2)
            old = resized_crop(squash[row, None].float(), wanted[row, view, None], SIZE)
            before += detail(old) / 12
    if shape == (150, 110):  # fine stripes, which the squashed image has lost
        assert detail(images) > 1.3 * before


def test_jpegs_are_decoded_no_larger_than_their_crops_need() -> None:
    content = photograph(0, 900, 700, turned=6)
    for side in (0.95, 0.5, 0.24):
        box = torch.tensor([[0.0, 0.0, side, side], [0.0, 0.0, 1.0, 1.0]])
        pixels = _pixels_for(_open(content, SIZE), box.numpy(), SIZE)
        height, width = pixels.shape[1:]
        assert height > width  # turned
        assert SIZE <= side * width <= 2 * SIZE
    assert isinstance(_open(photograph(0, 150, 110), SIZE), np.ndarray)


def test_broken_files_among_crops() -> None:
    good = photograph(1, 400, 300)
    files = [good, None, b"", b"nonsense", good[:3000], good]
    found = decode_crops(files, lambda _, aspect: centre_boxes(aspect, SIZE)[:, None], 1, SIZE)
    assert set(found.faults) == {1, 2, 3, 4}
    assert np.array_equal(found.images[0], found.images[5])
    assert not found.images[1:5].any()


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    files = [photograph(n, 150 + n, 120) for n in range(24)]
    pq.write_table(pa.table({"id": np.arange(24), "image": files}), tmp_path / "part.parquet")
    return DataConfig(path=str(tmp_path), image_size=SIZE)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("keep", "in_tasks"), [("encoded", False), ("streaming", False), ("streaming", True)]
)
def test_batches_of_crops(data: DataConfig, keep: str, in_tasks: bool) -> None:
    """Whatever the worker and the place in the batch, both views show what their boxes say."""
    kept = plan_stream(open_source(data), np.arange(24), replace(data, keep=keep))  # type: ignore[arg-type]
    augment = Augment(replace(AugmentConfig(), jitter=0, grayscale=0, flip=1), SIZE, seed=5)
    reader = Reader(
        kept, np.zeros((24, 1), np.int32), rank=0, world=1, batch_size=8, seed=0, group=2,
        augment=augment,
    )  # fmt: skip
    rows = reader.dataset(2, None, elsewhere=in_tasks) if keep == "streaming" else None

    def tables() -> Any:
        assert rows is not None
        return iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))

    seen = []
    for batch in reader.epoch(2, None, tables):
        views = augment.two_views(batch.images, batch.aspect, batch.ids, 2)
        assert views.shape == (16, 3, SIZE, SIZE)
        for row, number in enumerate(batch.ids.tolist()):
            content = photograph(number, 150 + number, 120)
            boxes = augment.boxes(batch.ids[row, None], batch.aspect[row, None], 2)[0]
            for view in range(2):
                crop = reference(content, boxes[view])
                expected = normalise(crop[None].flip(3) / 255)[0]
                assert torch.allclose(views[row + 8 * view], expected, atol=0.02)
        seen += batch.ids.tolist()
    assert sorted(seen) == list(range(24))


@pytest.mark.usefixtures("ray_local")
def test_auto_says_what_decoded_pixels_give_up(data: DataConfig) -> None:
    source = open_source(data)

    def reason(**changes: Any) -> str:
        return plan_stream(source, np.arange(24), replace(data, **changes)).reason

    assert "sharper" in reason()
    assert "sharper" not in reason(image_size=64)
    assert "sharper" not in reason(keep="raw")


@pytest.mark.usefixtures("ray_local")
def test_evaluation_crops_the_file(data: DataConfig) -> None:
    torch.manual_seed(0)
    model = ModelConfig()
    encoder = build_encoder(model, SIZE).eval()
    weights = EncoderSpec(model, SIZE).export(encoder)
    rows = open_source(data).images()
    size = data.stored_size
    refs = embed(rows, weights, store_size=size, views=True).to_arrow_refs()
    import ray

    table = pa.concat_tables([t for t in ray.get(refs) if t.num_rows]).sort_by("__id")
    files = [photograph(n, 150 + n, 120) for n in range(24)]
    aspect = torch.tensor([(150 + n) / 120 for n in range(24)])
    augment = Augment(AugmentConfig(), SIZE, 0)
    shown = centre_boxes(aspect, SIZE), augment.boxes(torch.arange(24), aspect, 0)[:, 0]
    crop, view = (
        torch.stack([reference(f, box) for f, box in zip(files, boxes, strict=True)])
        for boxes in shown
    )
    with torch.inference_mode():
        features = encoder.features(normalise(crop / 255))
        of_view = encoder.features(augment.view(view, None, torch.arange(24), 0, 0))
    assert np.allclose(feature_tensor(table["feature"]).numpy(), features.numpy(), atol=2e-2)
    expected = distances(features, of_view).numpy()
    assert np.allclose(table[DISTANCE].to_numpy(), expected, rtol=0.1, atol=1e-3)
    assert expected.min() > 1e-2
