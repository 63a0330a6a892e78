"""Clusters that exist already: ``--clusters.from`` a run or a file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png, write_parquet

import wcl_ray.runs.pretrain
from wcl_ray.cli import parse
from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.metadata import Clustering
from wcl_ray.config import (
    ClustersConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
)
from wcl_ray.data.images import open_images
from wcl_ray.errors import UserError
from wcl_ray.runs.cluster import cluster
from wcl_ray.runs.clusters import build_clusters, build_similarity, check_types
from wcl_ray.runs.pretrain import pretrain
from wcl_ray.search.options import SearchConfig, to_yaml
from wcl_ray.search.space import given_dimensions
from wcl_ray.storage import Folder

N = 48
NAMES = [f"bug {n}" for n in range(N)]
COARSE = ["big" if n % 2 else None if n % 8 == 0 else "small" for n in range(N)]
FINE = [-1 if n == 5 else n % 6 for n in range(N)]


def config_of(tmp_path: Path, table: Path | str, **clusters: Any) -> Config:
    if not (tmp_path / "data").exists():
        write_parquet(tmp_path / "data", N, id=NAMES)
    return Config(
        data=DataConfig(path=str(tmp_path / "data"), image_size=16),
        clusters=ClustersConfig(from_=str(table), **clusters),
        model=ModelConfig(projector=(16, 8)),
        train=TrainConfig(batch_size=24, epochs=1),
        storage=str(tmp_path / "runs"),
    )


def build(config: Config) -> Clustering:
    images = open_images(config.data, config.storage, config.seed)
    return build_clusters(config, images)[0]


def check(table: Assignment, expected: list[Any], name: str, numbers: range = range(N)) -> None:
    """The images of a column are together as expected; ids are those of ``bug N`` or N."""
    clusters = dict(
        zip(table.ids.tolist(), table.clusters[:, table.names.index(name)], strict=True)
    )
    keys = table.keys
    if keys is not None:
        clusters = dict(zip(keys.to_pylist(), clusters.values(), strict=True))
    found = [int(clusters[n if keys is None else NAMES[n]]) for n in numbers]
    wanted = [None if expected[n] in (None, -1) else expected[n] for n in numbers]
    assert [x < 0 for x in found] == [x is None for x in wanted]
    assert len(set(zip(found, wanted, strict=True))) == len(set(found)) == len(set(wanted))


@pytest.mark.usefixtures("ray_local")
def test_clusters_of_a_users_own_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"id": NAMES, "coarse": COARSE, "fine": FINE, "image": [b"x"] * N})
    rows = rows.take(pa.array(np.random.default_rng(0).permutation(N)[: N - 1]))
    (lost,) = set(NAMES) - set(rows["id"].to_pylist())
    known = [n for n in range(N) if NAMES[n] != lost]
    pq.write_table(rows, tmp_path / "a.parquet")
    config = config_of(tmp_path, tmp_path / "a.parquet", columns=("fine", "coarse"))
    table = build(config).assignment
    assert table.names == ("fine", "coarse")
    assert len(table.ids) == N
    check(table, FINE, "fine", known)  # type: ignore[arg-type]
    check(table, COARSE, "coarse", known)  # type: ignore[arg-type]
    row = table.keys.to_pylist().index(lost)
    assert (table.clusters[row] == -1).all()
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if "1 of 48 images are not in" in line]
    assert "a.parquet" in line
    assert "pair precision" in text  # the quality report
    # the same as CSV, in Windows' way; as the parts of a folder; more rows than images
    lines = [f"{r['id']};{r['fine']};{r['coarse'] or ''}" for r in rows.to_pylist()]
    text = "\r\n".join(["id;fine;coarse", *lines, "stranger;9;9", ""])
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16"))
    (tmp_path / "parts").mkdir()
    for part in range(2):
        pq.write_table(rows.slice(part * 20, 20 + 30 * part), tmp_path / f"parts/{part}.parquet")
    for place in ("a.csv", "parts"):
        clusters = replace(config.clusters, from_=str(tmp_path / place))
        other = build(replace(config, clusters=clusters)).assignment
        assert np.array_equal(other.clusters, table.clusters)
        assert other.names == table.names


@pytest.mark.usefixtures("ray_local")
def test_ids_are_matched_as_the_users_own(tmp_path: Path) -> None:
    """Integers, texts of integers, other column names, and names of files."""
    write_parquet(tmp_path / "numbers/data", N)
    write_parquet(tmp_path / "texts/data", N, id=[str(n) for n in range(N)])
    numbers = {"id": list(range(N)), "fine": FINE}
    texts = {"id": [str(n) for n in range(N)], "fine": [str(n) for n in FINE]}
    for case, rows in ((c, r) for c in ("numbers", "texts") for r in (numbers, texts)):
        pq.write_table(pa.table(rows), tmp_path / "t.parquet")
        table = build(config_of(tmp_path / case, tmp_path / "t.parquet")).assignment
        if table.keys is not None:
            order = np.argsort([int(k) for k in table.keys.to_pylist()])
            table = Assignment(np.arange(N), table.clusters[order], table.names)
        check(table, FINE, "fine")
    folder = tmp_path / "folder/data"
    for n in range(N):
        (folder / f"c{n % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"c{n % 2}/{n}.png").write_bytes(png(n))
    lines = [f"c{n % 2}/{n}.png,{FINE[n]}" for n in range(N)]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,fine", *lines]))
    table = build(config_of(tmp_path / "folder", tmp_path / "t.csv")).assignment
    assert table.keys is not None
    order = np.argsort([int(k[3:-4]) for k in table.keys.to_pylist()])
    check(Assignment(np.arange(N), table.clusters[order], table.names), FINE, "fine")


@pytest.mark.usefixtures("ray_local")
def test_clusters_of_a_run_and_of_a_job_are_the_same_to_the_last_bit(
    tmp_path: Path, s3: str
) -> None:
    made = config_of(tmp_path, "")
    made = replace(made, clusters=ClustersConfig(columns=("colour", "marks"), top_k=(2, 4)))
    cluster(made, out=str(tmp_path / "out.parquet"))
    first = build(made).assignment
    run = Folder("s3://bugs/runs/one", s3)
    run.write("config.json", b"{}")
    run.write("rounds/000/assignment.parquet", b"of an earlier round")
    run.write("rounds/001/assignment.parquet", first.to_parquet())
    run.write("rounds/002/train/x", b"not clustered yet")
    for place in (run.uri, str(tmp_path / "out.parquet")):
        config = config_of(tmp_path, place)
        if place == run.uri:
            config = replace(config, data=replace(config.data, endpoint=s3))
        table = build(config).assignment
        assert table.names == first.names
        assert table.clusters.dtype == first.clusters.dtype
        assert np.array_equal(table.clusters, first.clusters)
        assert np.array_equal(table.ids, first.ids)


@pytest.mark.usefixtures("ray_local")
def test_a_table_that_is_of_no_use_is_one_clear_line(tmp_path: Path) -> None:
    def rows(**changes: Any) -> pa.Table:
        kept = {"id": NAMES, "fine": FINE} | changes
        return pa.table({k: v for k, v in kept.items() if v is not None})

    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no PAR1")
    (tmp_path / "broken.csv").write_bytes(b"id,fine\n1,2,3\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    cases: list[tuple[str, pa.Table | None, dict[str, Any], str]] = [
        ("gone.parquet", None, {}, "no such run or file"),
        ("broken.parquet", None, {}, "broken.parquet cannot be read"),
        ("broken.csv", None, {}, "line 2 has 3 values"),
        ("run", None, {}, "holds no rounds/"),
        (
            "a.parquet",
            rows(id=None, uid=NAMES),
            {},
            "no id column called 'id' or 'file_name'; its columns are: (uid, fine|fine, uid); "
            "rename the one with the images' ids or file names to 'id'",
        ),
        ("a.parquet", rows(fine=None, key=NAMES), {}, "no cluster column beside 'id'"),
        ("a.parquet", rows(), {"columns": ("fin",)}, "did you mean 'fine'"),
        ("a.parquet", rows(id=[f"x{n}" for n in range(N)]), {}, "none of its 48 ids"),
        ("a.parquet", rows().slice(0, 0), {}, "none of its 0 ids"),
        ("a.parquet", rows(id=["bug 1", *NAMES[1:]]), {}, "id 'bug 1' occurs more than once"),
        ("a.parquet", rows(id=[None, *NAMES[1:]]), {}, "id column 'id' is empty in row 0"),
        ("a.parquet", rows(id=[n + 0.5 for n in range(N)]), {}, "ids are integers or strings"),
        ("a.parquet", rows(fine=[[n] for n in FINE]), {}, "column 'fine'.*cannot be told apart"),
        ("a.parquet", rows(fine=list(range(N))), {}, "every image is a singleton.*--clusters.from"),
        ("a.parquet", rows(fine=[3] * N), {}, "all images are in one.*--clusters.from"),
    ]
    for name, table, clusters, words in cases:
        if table is not None:
            pq.write_table(table, tmp_path / name)
        with pytest.raises(UserError, match=words) as caught:
            build(config_of(tmp_path, tmp_path / name, **clusters))
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("ray_local")
def test_columns_that_weigh_positives_beside_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ``clusters.columns`` the table has some, the images have the others."""
    rows = pa.table({"id": NAMES, "coarse": COARSE, "fine": FINE, "marks": FINE})
    pq.write_table(rows, tmp_path / "a.parquet")
    for columns, levels, used in (
        (("fine", "colour"), ("fine",), {"colour"}),
        (("colour",), ("coarse", "fine", "marks"), {"colour"}),
        (("marks", "colour"), ("marks",), {"marks", "colour"}),  # both have marks
        (("fine",), ("fine",), {"species", "colour", "size", "marks"}),
    ):
        config = config_of(tmp_path, tmp_path / "a.parquet", columns=columns)
        config = replace(config, loss=LossConfig(positives="graded"))
        images = open_images(config.data, config.storage, config.seed)
        assignment = build_clusters(config, images, show=False)[0].assignment
        assert assignment.names == levels
        capsys.readouterr()
        build_similarity(config, images, assignment)
        line = capsys.readouterr().out.partition("attributes of ")[2].strip()
        assert set(line.partition(" (")[0].split(", ")) == used
    clusters = replace(config.clusters, columns=("colour",))
    with pytest.raises(UserError, match="'colour' is not a cluster column"):
        build(replace(config, clusters=clusters, loss=LossConfig()))  # nothing is weighed
    clusters = replace(config.clusters, columns=("colour",), types=("size=category",))
    with pytest.raises(UserError, match=r"'size', which is not among clusters\.columns"):
        check_types(replace(config, clusters=clusters), images)


def test_options_that_contradict_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--clusters.from", "x.parquet"]
    for words, said in (
        (["--clusters.kind", "kmeans", "--train.rounds", "3"], "clusters.kind kmeans makes others"),
        (["--clusters.kind", "label"], "clusters.kind label makes others"),
        (["--clusters.top-k", "5"], "clusters.top-k makes others"),
        (["--clusters.k", "5"], "clusters.k makes others"),
        (["--clusters.level", "1"], "clusters.level makes others"),
        (["--train.rounds", "3"], "do not change between rounds"),
    ):
        with pytest.raises(SystemExit) as ended:
            parse([*given, *words])
        assert ended.value.code == 2
        error = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert said in error
    with pytest.raises(SystemExit):
        parse(["--clusters.kind", "table"])
    assert "needs --clusters.from" in capsys.readouterr().err
    config: Config = parse([*given, "--clusters.missing", "kmeans", "--clusters.k", "5"])
    assert (config.clusters.kind, config.rounds) == ("table", 5)


def test_from_is_one_option_in_every_spelling(tmp_path: Path) -> None:
    config: Config = parse(["--clusters.from", "runs/one", "--clusters.columns", "a", "b"])
    assert (config.clusters.kind, config.clusters.from_) == ("table", "runs/one")
    (tmp_path / "own.yaml").write_text("clusters: {from: runs/one, columns: [a, b]}")
    (tmp_path / "best.yaml").write_text(to_yaml(config))
    for name in ("own", "best"):
        assert parse(["--config", str(tmp_path / f"{name}.yaml")]) == config
    (dimension,) = given_dimensions(("clusters.from=a.csv,b.csv",)).values()
    search: SearchConfig = parse(["--data.path", "x"], cls=SearchConfig)
    trials = [search.of_trial({dimension.key: v}).clusters for v in dimension.values]
    assert [(c.kind, c.from_) for c in trials] == [("table", "a.csv"), ("table", "b.csv")]


class Reached(Exception):
    """The run has come to its stream."""


@pytest.mark.usefixtures("ray_local")
def test_a_resumed_run_needs_the_table_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "data", N, id=NAMES)
    pq.write_table(pa.table({"id": NAMES, "fine": FINE}), tmp_path / "a.parquet")
    config = replace(config_of(tmp_path, tmp_path / "a.parquet"), name="one", compare=True)

    def reached(images: Any, assignment: Assignment, *_: Any, **unused: Any) -> None:
        check(assignment, FINE, "fine")
        raise Reached

    monkeypatch.setattr(wcl_ray.runs.pretrain, "stream_images", reached)
    with pytest.raises(Reached):
        pretrain(config)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(Reached):
        pretrain(replace(config, resume=True))
    shutil.rmtree(tmp_path / "runs/one")
    with pytest.raises(UserError, match="no such run or file"):
        pretrain(config)
