"""Parts of a user's own: the very snippets of docs/extending.md, and how plugins are loaded."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from pictures import write_parquet
from ray.experimental import internal_kv

from wcl_ray import registry
from wcl_ray.cli import parse
from wcl_ray.config import ClustersConfig, from_dict
from wcl_ray.errors import UserError
from wcl_ray.registry import KINDS, LOSSES, REGISTRIES, TRACKERS
from wcl_ray.search.space import granularity_option, parse_space

ROOT = Path(__file__).parent.parent
while not (ROOT / "pyproject.toml").exists():
    ROOT = ROOT.parent
SNIPPETS = re.findall(
    r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL
)
N = 64


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Plugins stay loaded as long as the process lasts; other tests know nothing of them."""
    modules = set(sys.modules)
    before = {option: dict(parts.plugins()) for option, parts in REGISTRIES.items()}
    loaded = set(registry._loaded)
    yield
    for option, parts in REGISTRIES.items():
        for name in set(parts.plugins()) - set(before[option]):
            del parts.added[name]
    registry._loaded.clear()
    registry._loaded.update(loaded)
    if ray.is_initialized():
        internal_kv._internal_kv_del(registry._key())
    for name in set(sys.modules) - modules:
        if not name.startswith(("wcl_ray", "torch", "ray")) and "." not in name:
            module = sys.modules[name]
            if str(getattr(module, "__file__", "")).startswith("/tmp"):
                del sys.modules[name]


@pytest.fixture
def plugins(tmp_path: Path) -> list[str]:
    paths = []
    for name, code in SNIPPETS:
        (tmp_path / name).write_text(code)
        paths.append(str(tmp_path / name))
    return paths


def test_each_snippet_is_short() -> None:
    assert [name for name, _ in SNIPPETS] == [
        "geohash_clusters.py",
        "spread_loss.py",
        "csv_tracker.py",
    ]
    for name, code in SNIPPETS:
        assert len(code.splitlines()) < 40, name


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_snippets_of_the_documentation_train(
    tmp_path: Path, plugins: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Clusters of a geohash, a loss and a tracker in one run, whose workers have no such files."""
    from wcl_ray.runs.pretrain import pretrain

    places = [(52.5, 13.4), (48.86, 2.35), (-33.9, 151.2), (40.7, -74.0)]
    data = write_parquet(
        tmp_path / "images",
        N,
        files=1,
        latitude=[places[n % 4][0] + 1e-4 * n for n in range(N)],
        longitude=[places[n % 4][1] for n in range(N)],
    )
    words = f"--data.path {data} --data.image-size 16 --storage {tmp_path}/runs --name mine"
    words += " --clusters.kind geohash --clusters.columns latitude longitude"
    words += " --clusters.level 3 1 --loss.estimator spread --train.trackers csv"
    words += " --train.epochs 1 --train.batch-size 16 --train.warmup 0"
    words += " --scale.workers 1 --scale.cpus-per-worker 1"
    config = parse([*words.split(), "--plugins", *plugins])
    for path in plugins:
        Path(path).unlink()
    results = pretrain(config)
    assert list(results["variants"]) == ["geohash"]
    run = tmp_path / "runs/mine"
    table = pq.read_table(run / "rounds/000/assignment.parquet").sort_by("id")
    assert table.column_names[-2:] == ["geohash-3", "geohash-1"]
    fine, coarse = (table[name].to_pylist() for name in table.column_names[-2:])
    assert len(set(fine)) == 4
    assert all(fine[n] == fine[n % 4] for n in range(N))
    assert coarse[0] == coarse[1]  # Berlin and Paris lie in cell u
    assert len(set(coarse)) == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses
    assert all(loss < 0 for loss in losses.values())  # that of InfoNCE never is
    with open(run / "losses.csv") as stream:
        assert {int(r["step"]): float(r["loss"]) for r in csv.DictReader(stream)} == losses
    assert list(run.glob("events.*"))  # TensorBoard always
    assert json.loads((run / "config.json").read_text())["config"]["plugins"] == plugins
    assert "warning" not in capsys.readouterr().out


def test_plugins_add_choices(plugins: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def message(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            parse(words)
        assert caught.value.code == 2
        return capsys.readouterr().err

    lines = message("--clusters.kind", "geohash")
    assert lines.count("\n") == 1
    assert "'geohash' is none of attributes, hierarchy, instance" in lines
    geohash = ["--plugins", plugins[0], "--clusters.columns", "a", "b", "--clusters.kind"]
    assert parse([*geohash, "geohash"]).clusters.kind == "geohash"
    assert "did you mean geohash?" in message(*geohash, "goehash")
    assert "did you mean tensorboard?" in message("--train.trackers", "jsonl", "tensorbord")
    with pytest.raises(SystemExit):
        parse(["--plugins", plugins[0], "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "tags,geohash}" in told.replace(" ", "")  # the line is broken
    assert "geohash: Cells of latitude and longitude" in told


def test_a_search_knows_plugins(plugins: list[str]) -> None:
    registry.load_plugins(plugins)
    assert granularity_option("geohash") == "clusters.level"
    assert parse_space("loss.estimator", "supcon,spread").values == ("supcon", "spread")
    with pytest.raises(UserError, match="'spraed' is none of paper, supcon, spread; did you"):
        parse_space("loss.estimator", "spraed")


def test_stored_configurations_load_their_plugins(plugins: list[str]) -> None:
    tree = {"plugins": plugins, "loss": {"estimator": "spread"}}
    assert from_dict(tree).loss.estimator == "spread"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_thing", ["ModuleNotFoundError", "no_such_thing", "line 1"]),
        ("x = 1\ny = x / 0", ["ZeroDivisionError", "mine.py, line 2"]),
        ("def f(:", ["SyntaxError"]),
        (
            "from wcl_ray.registry import LOSSES\n@LOSSES.add('paper')\ndef f(batch): ...",
            ["loss.estimator 'paper' exists already"],
        ),
        (None, ["no module", "mine.py"]),
    ],
)
def test_plugins_that_cannot_be_loaded(
    code: str | None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    with pytest.raises(SystemExit) as caught:
        parse(["--plugins", str(tmp_path / "mine.py")])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message


def test_a_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "from wcl_ray.registry import TRACKERS\n@TRACKERS.add('mine')\nclass Mine: ...\n"
    )
    monkeypatch.chdir(tmp_path)
    assert parse(["--plugins", "of_mine", "--train.trackers", "mine"]).train.trackers == ("mine",)


def test_shipped_parts_are_their_files() -> None:
    """The names that --help shows without an import are those that the imports bring."""
    for option, parts in REGISTRIES.items():
        assert parts.shipped, option
        for name, summary in parts.shipped.items():
            assert parts.get(name) is parts.added[name]
            assert summary
    assert set(LOSSES.shipped) == {"paper", "supcon"}
    assert set(TRACKERS.shipped) == {"jsonl", "mlflow", "prometheus", "tensorboard", "wandb"}
    assert {k for k in KINDS.shipped if KINDS.get(k).granularity == "top_k"} == {
        "attributes",
        "tags",
    }


def test_options_import_no_part() -> None:
    code = (
        "import sys; from wcl_ray.cli import parse\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "set()"


def test_missing_metadata_is_for_kinds_that_have_some() -> None:
    assert ClustersConfig(kind="label", missing="kmeans").from_features
    for kind in ("instance", "kmeans"):
        with pytest.raises(ValueError, match=f"has no effect on clusters.kind {kind}"):
            ClustersConfig(kind=kind, missing="kmeans")
    with pytest.raises(ValueError, match=r"leave out clusters\.features metadata"):
        ClustersConfig(missing="kmeans", features="metadata")
