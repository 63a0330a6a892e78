"""What a search leaves, made of plain data; and the criterion that needs no label."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from pictures import write_parquet
from ray import cloudpickle

from wcl_ray.cli import demo_flags, parse
from wcl_ray.config import ClustersConfig, DataConfig, TrainConfig
from wcl_ray.data.images import open_images
from wcl_ray.errors import StorageError, UserError
from wcl_ray.search import neighbours
from wcl_ray.search import trial as trial_module
from wcl_ray.search.confirm import to_confirm
from wcl_ray.search.neighbours import attribute_gap, read_attributes
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome, Trial
from wcl_ray.search.record import Record
from wcl_ray.search.results import (
    best_yaml,
    correlations,
    describe,
    ranked,
    results_table,
    spearman,
    to_parquet,
)
from wcl_ray.search.run import show
from wcl_ray.search.space import parse_space
from wcl_ray.search.trial import FAILURE, StorageRefused, run_trial
from wcl_ray.search.tuner import ProgressCallback
from wcl_ray.storage import Folder
from wcl_ray.train.failure import THEN_RESUME

ROOT = Path(__file__).parents[2]


def outcome() -> Outcome:
    values = {"loss.temperature": 0.1, "clusters.top-k": (20,)}
    quality = {"clusters": 313, "h_z": 7.6, "i_zt": 3.3, "h_z_t": 4.3}
    trials = (
        Trial(0, "a", "finished", values, 8, 0.50, {"knn": 0.50}, quality, ((4, 0.4), (8, 0.5))),
        Trial(1, "b", "stopped", {**values, "clusters.top-k": (5, 20)}, 4, 0.70, {"knn": 0.7}),
        Trial(2, "c", "failed", values, error="the loss is not finite"),
        Trial(3, "d", "finished", {**values, "loss.temperature": 0.3}, 8, 0.55, {"knn": 0.55}),
    )
    return Outcome("it", "knn", "max", 8, "clusters.top-k", trials, validation=100, seconds=9)


def test_the_best_is_among_the_longest() -> None:
    found = outcome()
    best = found.best()
    assert best is not None
    assert best.number == 3  # not the one of 0.7 after fewer epochs
    assert [t.number for t in ranked(found)] == [3, 0, 1, 2]
    assert found.standard_error() == pytest.approx(((0.56 / 1.02) * (0.46 / 1.02) / 102) ** 0.5)
    text = results_table(found).splitlines()
    assert "55.0%" in text[2]
    assert "5+20" in text[4]
    assert "stopped" in text[4]
    assert text[5].rstrip().endswith("failed")


def test_parquet_holds_every_trial() -> None:
    table = pq.read_table(io.BytesIO(to_parquet(outcome())))
    assert table["trial"].to_pylist() == [0, 1, 2, 3]
    assert table["loss.temperature"].to_pylist() == [0.1, 0.1, 0.1, 0.3]
    assert table["clusters.top-k"].to_pylist() == ["20", "5+20", "20", "20"]
    assert table["score"].to_pylist() == [0.5, 0.7, None, 0.55]
    assert table["i_zt"].to_pylist() == [3.3, None, None, None]
    assert table["curve"].to_pylist()[0] == [
        {"epoch": 4, "score": 0.4},
        {"epoch": 8, "score": 0.5},
    ]
    assert table["error"].to_pylist()[2] == "the loss is not finite"
    assert table.schema.metadata[b"metric"] == b"knn"
    single = Outcome("x", "knn", "max", 8, None, outcome().trials[:1])
    assert pq.read_table(io.BytesIO(to_parquet(single)))["clusters.top-k"].type == pa.int64()
    assert (
        pq.read_table(io.BytesIO(to_parquet(Outcome("x", "knn", "max", 8, None, ())))).num_rows == 0
    )


def test_best_yaml_is_a_configuration(tmp_path: Path) -> None:
    config = SearchConfig(data=DataConfig(path="x", label="race"), name="it")
    text = best_yaml(config, outcome())
    assert text is not None
    assert "knn 55.0%; the defaults were not tried" in text
    assert "on 100 validation images (standard error 4.9) after 8 epochs" in text
    (tmp_path / "best.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "best.yaml")]) == config.best(
        {"loss.temperature": 0.3, "clusters.top-k": (20,)}
    )
    assert best_yaml(config, Outcome("x", "knn", "max", 8, None, ())) is None


def test_spearman_against_its_definition() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ties at their mean rank: ranks 1.5 1.5 3 against 1 2 3
    assert spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(0.8660254)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_correlations_take_the_latest_epoch_of_half_the_trials() -> None:
    rows = {}
    for n in range(10):
        rows[str(n)] = {4: {"knn": n / 10, "rank_me": n, "uniformity": -n, "feature_std": 1.0}}
        if n > 6:
            rows[str(n)][8] = {"knn": 0.5, "rank_me": 1.0, "uniformity": 0.0, "feature_std": 1.0}
    found, where = correlations(rows, "knn")
    assert found == {"rank_me": pytest.approx(1.0), "uniformity": pytest.approx(1.0)}
    assert where == "10 trials after epoch 4"
    assert correlations({"a": {4: {"knn": 1.0}}}, "knn") == ({}, "")


def test_record_survives_its_driver(tmp_path: Path) -> None:
    config = SearchConfig(data=DataConfig(path="x", label="race"))
    folder = Folder(str(tmp_path))
    record = Record(folder, config, "clusters.top-k")
    record.start("a", {"clusters.top-k": (5,)}, default=True)
    assert record.evaluated("a", 2, {"knn": 0.3})
    again = Record(folder, config, "clusters.top-k")
    assert again.start("a", {"clusters.top-k": (5,)}, default=True)["restarts"] == 1
    assert not again.evaluated("a", 2, {"knn": 0.3})  # told once more after the restart
    assert again.evaluated("a", 4, {"knn": 0.4})
    again.end("a", "stopped", {"clusters": 3})
    trial = again.outcome().trials[0]
    assert (trial.values, trial.curve) == ({"clusters.top-k": (5,)}, ((2, 0.3), (4, 0.4)))
    assert (trial.status, trial.restarts, trial.default) == ("stopped", 1, True)
    assert again.seconds >= record.seconds - 1
    again.start("b", {"clusters.top-k": (9,)}, default=False)
    again.start("c", {"clusters.top-k": (7,)}, default=False)
    assert again.forget({"a", "c"}) == ["b"]
    assert [t.number for t in again.outcome().trials] == [0, 1]


def test_attribute_gap() -> None:
    x = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6)
    a = torch.tensor([[True, True]] * 6 + [[False, True]] * 6)
    # neighbours tell the first attribute; the second is true everywhere and judges nothing
    assert attribute_gap(x, a, x, a, 3) == pytest.approx(1.0)
    assert attribute_gap(x, ~a, x, a, 3) == pytest.approx(-1.0)
    collapsed = torch.ones(12, 2)
    assert attribute_gap(collapsed, a, collapsed, a, 12) == pytest.approx(0.0, abs=1e-6)
    assert attribute_gap(x, a, x[:4], a[:4], 3) is None  # too few without it


def test_attribute_gap_against_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(50, 6)), rng.normal(size=(40, 6))
    a, own = rng.random((50, 3)) < 0.4, rng.random((40, 3)) < 0.4
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, q)]
    similarity = unit[1] @ unit[0].T
    near = np.argsort(-similarity, axis=1)[:, :8]
    gaps = []
    for g in range(3):
        votes = []
        for i in range(40):
            weight = np.exp(similarity[i, near[i]] / 0.07)
            votes.append((weight * a[near[i], g]).sum() / weight.sum())
        gaps.append(np.mean(np.array(votes)[own[:, g]]) - np.mean(np.array(votes)[~own[:, g]]))
    found = attribute_gap(
        torch.from_numpy(x), torch.from_numpy(a), torch.from_numpy(q), torch.from_numpy(own), 8
    )
    assert found == pytest.approx(float(np.mean(gaps)), rel=1e-5)


@pytest.mark.usefixtures("ray_local")
def test_attributes_are_read_as_bits(tmp_path: Path) -> None:
    data = DataConfig(path=write_parquet(tmp_path / "data", 96), label="species")
    config = SearchConfig(data=data, clusters=ClustersConfig(columns=("colour", "marks")))
    images = open_images(data, str(tmp_path), 0, 0.2)
    ids, bits = read_attributes(config, images)
    assert bits.shape == (len(ids), 8)
    assert set(ids) == set(images.without_validation().metadata().to_pandas()["__id"])
    columns = {tuple(column) for column in np.unpackbits(bits, axis=1).T if column.any()}
    red = tuple(int((n // 2) % 3 == 0) for n in ids)
    spot = tuple(int((n // 6) % 2) for n in ids)
    assert {red, spot} <= columns
    assert len(columns) == 4  # three colours, and both marks are always together


def test_best_yaml_of_the_demo_wins_over_what_the_demo_implies(tmp_path: Path) -> None:
    config = SearchConfig(data=DataConfig(label="label"), name="it")
    text = best_yaml(config, outcome())  # top-k 20, the option's own default
    assert text is not None
    (tmp_path / "best.yaml").write_text(text)
    words = ["--config", str(tmp_path / "best.yaml")]
    found = parse(words, implied=lambda given: demo_flags(given, "--compare"))
    assert found.clusters.top_k == (20,)
    assert found.train.epochs == config.train.epochs
    assert not found.compare


def test_no_accuracy_has_no_standard_error() -> None:
    assert replace(outcome(), metric="metadata").standard_error() is None
    sure = replace(outcome(), trials=(replace(outcome().trials[3], score=1.0),))
    assert 0.005 < (sure.standard_error() or 0) < 0.02  # 1.0 on 100 images is not certain


def news(
    folder: Path, publish: Callable[[], None] = lambda: None
) -> tuple[ProgressCallback, Record, Any]:
    """The driver's news of one trial, and the trial as Tune tells of it."""
    config = SearchConfig(data=DataConfig(path="x", label="race"), name="it", storage=str(folder))
    dimension = parse_space("loss.temperature", "0.1,0.2")
    place = Folder(str(folder / "it"))
    record = Record(place, config, None)
    setup: Any = SimpleNamespace(
        config=config, folder=place, dimensions=(dimension,), granularity=None, quality={}
    )
    values = {"loss.temperature": 0}
    trial = SimpleNamespace(trial_id="t1", config=values, pickled_error_file=None)
    return ProgressCallback(setup, record, publish, None, "trial"), record, trial


def test_a_trial_stopped_after_a_retry_has_not_failed(tmp_path: Path) -> None:
    told, record, trial = news(tmp_path)
    told.on_trial_start(0, [], trial)
    failure = tmp_path / "it/trials/t1" / FAILURE
    failure.parent.mkdir(parents=True)
    failure.write_text('{"error": "a lost node"}')
    told.on_trial_recover(0, [], trial)
    told.on_trial_start(0, [], trial)
    told.on_trial_result(0, [], trial, {"epoch": 1, "score": 0.5, "knn": 0.5})
    told.on_trial_complete(0, [], trial)
    assert record.trials["t1"]["status"] == "stopped"
    assert record.trials["t1"]["restarts"] == 1
    assert record.outcome().best() is not None


def test_the_traceback_of_a_trial_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told, record, trial = news(tmp_path)
    failure = tmp_path / "it/trials/t1" / FAILURE
    failure.parent.mkdir(parents=True)
    content = {"error": "worker 1 failed: OSError: no", "traceback": "Traceback (…)\nOSError: no"}
    for end in (told.on_trial_recover, told.on_trial_error):
        told.on_trial_start(0, [], trial)
        failure.write_text(json.dumps(content))
        end(0, [], trial)
    printed = capsys.readouterr().out
    assert printed.count("Traceback (…)\nOSError: no") == 1
    assert "is restarted from its last checkpoint: worker 1 failed: OSError: no" in printed
    assert record.trials["t1"]["error"] == "worker 1 failed: OSError: no"


PERMANENT = StorageError("/x/state.pt cannot be written: no space left", permanent=True)
TEMPORARY = StorageError("s3://b/x cannot be used: timed out")


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (PERMANENT, StorageRefused),
        (UserError(f"/x/state.pt cannot be written: no space left{THEN_RESUME}"), StorageRefused),
        (TEMPORARY, StorageError),  # Tune tries it again
        (UserError("the loss is not finite"), None),  # the same again would fail the same way
    ],
)
def test_what_tune_is_told_of_storage_that_refuses_a_trial_something(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    raised: type[Exception] | None,
) -> None:
    def train(*given: object) -> None:
        raise fault

    monkeypatch.setattr(trial_module, "_train", train)
    context = SimpleNamespace(get_trial_id=lambda: "t1")
    monkeypatch.setattr(trial_module.tune, "get_context", lambda: context)
    setup: Any = SimpleNamespace(folder=Folder(str(tmp_path)), dimensions=())
    if raised is None:
        run_trial({}, setup)
    else:
        with pytest.raises(raised, match="cannot be"):
            run_trial({}, setup)


def test_storage_that_refuses_a_trial_something_ends_the_search(tmp_path: Path) -> None:
    told, record, trial = news(tmp_path)
    told.on_trial_start(0, [], trial)
    refused = ray.exceptions.RayTaskError(
        "run_trial", "…", StorageRefused(f"{PERMANENT}{THEN_RESUME}")
    )
    trial.pickled_error_file = str(tmp_path / "error.pkl")
    Path(trial.pickled_error_file).write_bytes(cloudpickle.dumps(refused.as_instanceof_cause()))
    with pytest.raises(UserError, match=r"no space left.*--resume continues"):
        told.on_trial_recover(0, [], trial)
    assert record.trials["t1"]["status"] == "failed"
    assert "no space left" in record.trials["t1"]["error"]
    told.on_trial_start(0, [], trial)
    assert record.trials["t1"] | {"status": "unfinished", "error": ""} == record.trials["t1"]


def test_a_trial_that_dies_before_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def publish() -> None:
        raise OSError("no space left")

    told, record, trial = news(tmp_path, publish)
    told.on_trial_recover(0, [], trial)
    told.on_trial_error(0, [], trial)
    assert record.trials["t1"]["status"] == "failed"
    assert record.trials["t1"]["error"] == "its process died"
    printed = capsys.readouterr().out
    assert "cannot be written: no space left" in printed


def test_what_is_trained_at_full_length() -> None:
    config = SearchConfig(data=DataConfig(path="x"), train=TrainConfig(epochs=20), trial_epochs=8)
    space = (
        parse_space("loss.temperature", "loguniform:0.03:0.5"),
        parse_space("clusters.top-k", "5,20,5+20"),
    )
    default = {"loss.temperature": 0.2, "clusters.top-k": (20,)}
    best, second = outcome().trials[3].values, outcome().trials[0].values
    assert to_confirm(config, space, outcome()) == [best, second, default]  # to compare with
    assert to_confirm(replace(config, confirm=1), space, outcome()) == [best, default]
    outside = (parse_space("loss.temperature", "0.1,0.3"), space[1])
    assert to_confirm(config, outside, outcome()) == [best, second, default]
    # a setting that was tried twice is trained once, and the default is not trained again
    trial = outcome().trials[0]
    trials = (
        trial,
        replace(trial, number=1, score=0.4),
        replace(trial, number=2, score=0.3, values=default),
    )
    assert to_confirm(config, space, replace(outcome(), trials=trials)) == [second, default]
    assert to_confirm(config, space, replace(outcome(), trials=trials[2:])) == []
    assert to_confirm(replace(config, confirm=0), space, outcome()) == []
    assert to_confirm(replace(config, trial_epochs=20), space, outcome()) == []
    none = replace(outcome(), trials=outcome().trials[2:3])
    assert to_confirm(config, space, none) == []


def test_the_best_of_full_runs_is_named() -> None:
    config = SearchConfig(data=DataConfig(path="x"), train=TrainConfig(epochs=20), trial_epochs=8)
    values = {"loss.temperature": 0.2, "clusters.top-k": (20,)}
    trial = Trial(0, "e", "finished", values, 20, 0.6, {"knn": 0.6}, default=True)
    worse = replace(trial, number=1, id="f", score=0.5, default=False)
    worse = replace(worse, values={**values, "loss.temperature": 0.3})
    full = replace(outcome(), name="confirm", epochs=20, trials=(worse, trial))
    text = best_yaml(config, replace(outcome(), confirmed=full))
    assert text is not None
    assert "temperature: 0.2" in text
    assert "The defaults are the best: knn 60.0%" in text
    assert "From 2 full runs of settings chosen from 4 trials of search it" in text
    assert "after 20 epochs" in text
    broken = replace(full, trials=(replace(trial, score=None, status="failed"),))
    text = best_yaml(config, replace(outcome(), confirmed=broken))
    assert "temperature: 0.3" in str(text)  # of the trials
    assert describe(full).startswith("temperature 0.2, top-k 20 (the default): 60.0%; ")


def test_what_metadata_is_judged_by_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show(Folder("x"), replace(outcome(), metric="metadata"))
    assert "by the attributes that the clusters are made of" in capsys.readouterr().out
    show(Folder("x"), outcome())
    assert "made of" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(["--help"], SearchConfig)
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "attributes that the clusters are made of" in words
