"""Search by image: the index, its queries and its page."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from pictures import png
from PIL import Image
from runs import untrained_run

from wcl_ray import load_encoder
from wcl_ray.config import DataConfig
from wcl_ray.errors import StorageError, UserError
from wcl_ray.report.neighbours import show_neighbours
from wcl_ray.runs.embed import embed_run
from wcl_ray.runs.neighbours import find_neighbours


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_search_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, features, page = tmp_path / "photos", str(tmp_path / "features"), tmp_path / "p.html"
    files = [photos / f"{'ab'[n % 2]}/{n}.png" for n in range(24)]
    for n, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(n))
    data = DataConfig(path=str(photos), label="label", image_size=16)
    run = untrained_run(tmp_path / "run", data=data)
    other = untrained_run(tmp_path / "other", data=DataConfig(path=str(photos), image_size=24))
    embed_run(run, features, {}, columns=("label",), index=True)
    (photos / "a/100.png").write_bytes(png(100))
    files.append(photos / "a/100.png")
    embed_run(run, features, {}, columns=("label",))  # an index that is there is kept up to date

    # against all similarities
    x = F.normalize(load_encoder(run).encode(files), dim=1)
    similarity, order = (x[3] @ x.T).sort(descending=True)
    names = [str(file.relative_to(photos)) for file in files]
    result = find_neighbours(features, image=str(files[3]), k=5)
    assert result.images == 25
    assert [n.name for n in result.nearest] == [names[i] for i in order[:5]]
    found = torch.tensor([n.similarity for n in result.nearest])
    assert torch.allclose(found, similarity[:5], atol=1e-5)
    assert result.nearest[0].columns == {"label": "b"}
    by_id = find_neighbours(features, id=names[3], k=4)  # without the image itself
    assert [n.name for n in by_id.nearest] == [n.name for n in result.nearest[1:]]
    number = pq.read_table(features).filter(pq.read_table(features)["key"].to_numpy() == names[3])
    assert find_neighbours(features, id=str(number["id"][0]), k=4) == by_id
    assert len(find_neighbours(features, id=names[3], k=99).nearest) == 24

    # the page holds the pictures
    shown = show_neighbours(features, image=str(files[3]), k=3, out=str(page))
    assert names[int(order[1])] in capsys.readouterr().out
    html = page.read_text()
    contents = [
        base64.b64decode(c) for c in re.findall(r'src="data:image/jpeg;base64,(.*?)"', html)
    ]
    assert contents == [shown.query.thumbnail, *(n.thumbnail for n in shown.nearest)]
    grey = [np.asarray(Image.open(io.BytesIO(c)).convert("L"), dtype=float) for c in contents]
    whole = np.asarray(Image.open(files[3]).convert("L").resize((80, 80)), dtype=float)
    assert grey[0].shape == grey[1].shape == whole.shape
    near, far = (np.abs(g - whole).mean() for g in grey[1:3])
    assert near < 15 < 30 < far
    assert "http" not in html

    # the projector's output is another feature of the same image
    embed_run(run, f"{features}-2", {}, features="projector", index=True)
    heads = find_neighbours(f"{features}-2", image=str(files[3]), k=24)
    assert heads.nearest[0].name == names[3]
    assert heads.nearest[0].similarity == pytest.approx(1, abs=1e-5)
    assert [n.name for n in heads.nearest] != [names[i] for i in order[:24]]
    check_errors(tmp_path, features, other)


def check_errors(tmp_path: Path, features: str, other: str) -> None:
    photo = str(tmp_path / "photos/b/3.png")
    (tmp_path / "text.jpg").write_text("no image")
    empty, moved = str(tmp_path / "run"), tmp_path / "moved"
    with pytest.raises(UserError, match=r"text\.jpg is not an image that can be read: U"):
        find_neighbours(features, image=str(tmp_path / "text.jpg"))
    with pytest.raises(StorageError, match=r"none\.png cannot be used: .*No such file"):
        find_neighbours(features, image=str(tmp_path / "none.png"))
    with pytest.raises(UserError, match=r"'3\.png' is not in .*; the nearest: b/3\.png$"):
        find_neighbours(features, id="3.png")
    with pytest.raises(UserError, match=r"'a/3\.png' is not in .*nearest: .*b/3\.png"):
        find_neighbours(features, id="a/3.png")
    with pytest.raises(UserError, match=r"another encoder .* of 24 pixels instead of 16"):
        find_neighbours(features, image=photo, run=other)
    with pytest.raises(UserError, match="one of the two"):
        find_neighbours(features, image=photo, id="7")
    with pytest.raises(UserError, match="--k is 0; it starts at 1"):
        find_neighbours(features, id="b/3.png", k=0)
    with pytest.raises(UserError, match=r"holds no features; jobs/embed\.py --run RUN"):
        find_neighbours(empty, image=photo)
    shutil.copytree(features, moved)
    manifest = json.loads((moved / "_embedding.json").read_text())
    (moved / "_embedding.json").write_text(json.dumps(manifest | {"run": "gone"}))
    with pytest.raises(UserError, match=r"is not a run folder.*if the run has moved, give --run"):
        find_neighbours(str(moved), image=photo)
    assert find_neighbours(str(moved), image=photo, run=str(tmp_path / "run")).images == 25
    for wanted in ("²", "--5"):
        with pytest.raises(UserError, match="is not in"):
            find_neighbours(features, id=wanted)
    for part in moved.glob("part-*.parquet"):  # as after a damaged one was deleted
        part.unlink()
    with pytest.raises(UserError, match=r"has an index, but no features; repeat its embed\.py"):
        find_neighbours(str(moved), id="b/3.png")
    with pytest.raises(UserError, match=r"is there and no \.html file; choose another name"):
        show_neighbours(features, image=photo, out=photo)
    (moved / "_index.faiss").write_bytes(b"IxM2 cut off")
    with pytest.raises(UserError, match=r"_index\.faiss is damaged; embed\.py --index writes it"):
        find_neighbours(str(moved), id="b/3.png")
    (moved / "_index.faiss").unlink()
    with pytest.raises(UserError, match=r"has no index; repeat its embed\.py with --index"):
        find_neighbours(str(moved), id="b/3.png")


def test_the_index_is_one_that_faiss_reads(tmp_path: Path) -> None:
    """What others do with the file: ids, cosine similarities."""
    import pyarrow as pa

    from wcl_ray.runs.feature_folder import INDEX, build_index
    from wcl_ray.storage import Folder

    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8)
    table = pa.table({"id": np.arange(50) * 7, "feature": column})
    for start in (0, 20):
        pq.write_table(table.slice(start, 20 if not start else 30), tmp_path / f"p{start}.parquet")
    assert build_index._function(Folder(str(tmp_path))) == 50
    index = faiss.read_index(str(tmp_path / INDEX))
    similarity, ids = index.search(x[11:12] / np.linalg.norm(x[11]), 1)
    assert (ids.tolist(), similarity.round(5).tolist()) == ([[77]], [[1.0]])
