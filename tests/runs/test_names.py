"""Names, paths and columns in any script: they work, or are refused before anything happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import write_parquet
from runs import N, job

from wcl_ray.cli import parse
from wcl_ray.config import Config, DataConfig
from wcl_ray.registry import TRACKERS
from wcl_ray.report.search import page
from wcl_ray.runs.folder import claim, open_run
from wcl_ray.search.options import SearchConfig, to_yaml
from wcl_ray.search.outcome import Outcome
from wcl_ray.storage import Folder
from wcl_ray.train.trackers import Tracker, Trackers
from wcl_ray.train.trackers.jsonl import MetricsLog
from wcl_ray.train.trackers.prometheus import Prometheus

NAMES = [
    "my run é ü 100%", "昆虫 甲虫", "خنفساء", "🪲", "a#b?c=d&e", "[a]*{b}", "-dash", "'q\"uote",
    "back\\slash", "%41%2F", "~tilde", ".hidden", "a:b;c|d<e>", "x" * 200, "é" * 100,
]  # fmt: skip


@pytest.mark.parametrize("where", ["disk", "s3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_script(tmp_path: Path, s3: str, name: str, where: str) -> None:
    storage = f"{tmp_path}/rüns #1 100%" if where == "disk" else "s3://bugs/rüns #1 100%"
    folder = Folder(storage, s3) / name
    folder.check()
    folder.write("a b/ü.json", b"x")
    assert folder.read("a b/ü.json") == b"x"
    assert (folder / "a b").names() == ["ü.json"]
    assert name in Folder(storage, s3).names()
    folder.remove()
    assert not folder.exists("a b/ü.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_that_name_is_found_again(tmp_path: Path, name: str) -> None:
    words = [f"--name={name}", "--storage", f"{tmp_path}/rüns #1"]
    config: Config = parse(words)
    with open_run(config, "results.json") as (resolved, folder):
        claim(folder, resolved)
        log = Trackers(folder, ("tensorboard",))
        log.log({"step": 1, "loss": 0.5})
        log.close()
    found: Config = parse([*words, "--resume"])
    with open_run(found, "results.json") as (again, folder):
        assert again.name == name
        assert any(file.startswith("events.") for file in folder.names())
        assert MetricsLog(folder).rows == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "a/b", "../a", "a\nb", "a\rb", "a\0b", "a\u2028b", "\udce4", " a", "a ",
     "x" * 201, "é" * 101],
)  # fmt: skip
def test_a_name_that_no_folder_can_have(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([f"--name={name}", "--storage", str(tmp_path / "runs")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "name " in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", ["Käfer 100%", "甲虫", "a\nb", "x" * 250, "\udce4", "...", "é" * 120, "[a]"]
)
def test_the_name_made_of_a_path_can_be_one(tmp_path: Path, path: str) -> None:
    config = Config(data=DataConfig(path=f"/data/{path}"), storage=str(tmp_path / "runs"))
    with open_run(config, "results.json") as (resolved, _):
        assert str(resolved.name).encode()


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("name", [*NAMES, "a\nb"])
def test_gauges_take_any_name(name: str) -> None:
    Prometheus(Folder(f"/rüns/{name}")).log(1, {"loss": 1.0})


def test_what_only_shows_something_never_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: object) -> None:
        raise UnicodeEncodeError("ascii", "é", 0, 1, "no")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter", broken)
    monkeypatch.setitem(TRACKERS.added, "closes badly", type("C", (Tracker,), {"close": broken}))
    monkeypatch.setattr(TRACKERS.added["closes badly"], "log", lambda *_: None)
    monkeypatch.setitem(TRACKERS.added, "opens badly", broken)
    log = Trackers(Folder(str(tmp_path)), ("tensorboard", "closes badly", "opens badly"))
    log.log({"step": 1, "loss": 0.5})
    log.log({"step": 2, "loss": 0.5})
    log.close()
    told = capsys.readouterr().out
    for name in ("tensorboard", "closes badly", "opens badly"):
        assert told.count(f"warning: tracker {name} failed, the run continues without it") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_another_encoding(encoding: str) -> None:
    code = """
from wcl_ray.cli import run_job
from wcl_ray.terminal import say
def body():
    say("run", "甲虫 é \\udce4")
    raise FileNotFoundError("甲虫 \\udce4")
run_job(body)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 1
    assert b"Traceback" not in found.stderr
    assert found.stdout.startswith(b"run       ")
    assert found.stderr.startswith(b"error: ")


def test_a_reader_that_is_gone_does_not_end_a_run() -> None:
    code = """
import os
from wcl_ray.terminal import Live, say, warn
from wcl_ray.train.trackers import Tracker, Trackers
from wcl_ray.train.trackers.jsonl import MetricsLog
from wcl_ray.train.trackers.prometheus import Prometheus
os.close(1)
say("run", "on")
warn("on")
Live("title", 0).show("text")
os._exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_the_page_of_a_search_escapes_its_name() -> None:
    outcome = Outcome(
        name="<script>é&\"'", metric="knn", mode="max", epochs=1, granularity=None, trials=(),
        validation=0, seconds=1.0, details={"data": "<b>甲虫"}, correlations={},
    )  # fmt: skip
    text = page(outcome)
    assert "<script>é" not in text
    assert "&lt;script&gt;é&amp;" in text
    assert "<b>甲虫" not in text


def test_options_in_any_script_come_back_from_yaml(tmp_path: Path) -> None:
    columns = ("größe 100%", "甲虫: #1", "'a\"b", "🪲")
    config: SearchConfig = parse(
        ["--clusters.columns", *columns, "--data.label", "кто?"], SearchConfig
    )
    file = tmp_path / "best é.yaml"
    file.write_text(to_yaml(config.plain(), "", ()), encoding="utf-8")
    again: Config = parse(["--config", str(file)])
    assert again.clusters.columns == columns
    assert again.data.label == "кто?"


NAME, COLOUR, MARKS, KIND = "my run é 甲虫 100%", "größe 100% 🪲", "标记 #?[1]", 'it\'s a "kind"'


@pytest.mark.slow
def test_three_that_start_a_run_of_one_name(tmp_path: Path, ray_local: str) -> None:
    """Two at once, and one with other options three seconds later: what is there in the end is of
    one of them. The run, its storage, its data and columns have names in several scripts."""
    data = tmp_path / "dätä #1 100%"
    write_parquet(data, N)
    renamed = {"colour": COLOUR, "marks": MARKS, "species": KIND}
    for file in data.glob("*.parquet"):
        table = pq.read_table(file)
        names = [renamed.get(name, name) for name in table.column_names]
        pq.write_table(pa.table(dict(zip(names, table.columns, strict=True))), file)
    storage = tmp_path / "rüns #1"
    words = [
        "--data.path", str(data), "--data.label", KIND, "--data.image-size", "16",
        "--clusters.columns", COLOUR, MARKS, "--train.batch-size", "24", "--train.epochs", "1",
        "--storage", str(storage), "--name", NAME, "--scale.workers", "1",
    ]  # fmt: skip
    environment = os.environ | {"RAY_ADDRESS": ray_local}  # LC_ALL=C is that of all jobs

    def begin(*more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            job(tmp_path, *words, *more),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    jobs = [begin("--clusters.top-k", "4"), begin("--clusters.top-k", "4")]
    time.sleep(3)
    jobs.append(begin("--clusters.top-k", "2"))
    try:
        told = [one.communicate(timeout=280) for one in jobs]
    finally:
        for one in jobs:
            one.kill()
    assert sorted(one.returncode for one in jobs) == [0, 1, 1], b"\n".join(sum(told, ())).decode()
    run = storage / NAME
    stored = json.loads((run / "config.json").read_text())["config"]
    for one, (out, errors), k in zip(jobs, told, (4, 4, 2), strict=True):
        if one.returncode == 0:
            assert stored["clusters"]["top_k"] == [k]
            assert b"warning" not in out
            table = pq.read_table(run / "rounds/000/assignment.parquet")
            assert f"attributes-{k}" in table.column_names
        else:
            assert errors.count(b"\n") == 1, errors
            assert b"is in use by" in errors or b"holds a run already" in errors
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert len(list(run.glob("events.*"))) == 1
    assert (run / "results.json").exists()
    assert not (run / ".alive").exists()
