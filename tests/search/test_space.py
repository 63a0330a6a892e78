"""Spaces of a search: the grammar, points of them, grids, and the options around them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wcl_ray.cli import parse
from wcl_ray.config import ClustersConfig, Config, DataConfig, LossConfig, TrainConfig
from wcl_ray.errors import UserError
from wcl_ray.search.options import SearchConfig, to_yaml
from wcl_ray.search.space import (
    Dimension,
    decode,
    default_dimensions,
    encode,
    given_dimensions,
    grid,
    parse_space,
    show,
    spaced,
)


def test_ranges_and_lists() -> None:
    lr = parse_space("train.lr", "loguniform:1e-4:1e-2")
    assert (lr.kind, lr.low, lr.high, lr.log) == ("float", 1e-4, 1e-2, True)
    k = parse_space("clusters.k", "logint:10:1000")
    assert (k.kind, k.decode(37)) == ("int", (37,))
    assert k.encode((37,)) == 37
    assert k.encode((5,)) is None
    assert k.encode((20, 40)) is None
    top = parse_space("clusters.top-k", "20,5,5+20, 5")
    assert top.values == ((5,), (5, 20), (20,))
    assert [top.decode(i) for i in range(3)] == [(5,), (5, 20), (20,)]
    assert top.encode((20,)) == 2
    assert parse_space("train.optimizer", "sgd,adamw").values == ("sgd", "adamw")
    assert parse_space("model.projector-norm", "yes,no").values == (True, False)
    assert parse_space("loss.temperature", "choice:0.2,0.1").values == (0.1, 0.2)
    assert parse_space("model.backbone", "timm:vit_tiny_patch16_224,small").values[0] == (
        "timm:vit_tiny_patch16_224"
    )
    assert parse_space("loss.instance-weight", "0,1,5").values == (0.0, 1.0, 5.0)
    assert parse_space("loss.instance-weight", "loguniform:0.1:10").kind == "float"
    assert show((5, 20)) == "5+20"
    assert show(0.123456) == "0.1235"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lr=foo:1:2", r"train\.lr 'foo:1:2': a space is uniform:LOW:HIGH"),
        ("train.lr=loguniform:0:1", "LOW of a logarithmic range must be above 0"),
        ("train.lr=uniform:2:1", "LOW must not be above HIGH"),
        ("train.lr=uniform:1", "expected uniform:LOW:HIGH"),
        ("train.lr=uniform:a:b", "expected uniform:LOW:HIGH"),
        ("train.lr=uniform:nan:1", "LOW must not be above HIGH"),
        ("train.lr=uniform:-1:1", r"train\.lr is -1\.0; it must be above 0"),
        ("train.lr=,", "holds no value"),
        ("train.batch-size=uniform:2:9", "the option is an integer; use int or logint"),
        ("train.batch-size=int:2.5:9", "LOW and HIGH must be integers"),
        ("train.optimizer=int:2:9", "not a number; use A,B,C"),
        ("train.optimizer=adam", "'adam' is not one of adamw, sgd, lars"),
        ("clusters.top-k=a", "'a' is not an integer"),
        ("clusters.top-k=0,1", "top-k starts at 1"),
        ("model.projector-norm=maybe", "'maybe' is not true or false"),
        ("loss.instance-weight=a", "'a' is not a number"),
        ("loss.instance-weight=-1,1", "loss.instance-weight is -1.0; it must not be negative"),
        ("loss.temp=1", "there is no such option; did you mean loss.temperature"),
        ("train.epochs=5", "sets the length of trials"),
        ("data.path=x", "is the same for all trials"),
        ("seed=1,2", "is the same for all trials"),
    ],
)
def test_wrong_spaces_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        given_dimensions([text])


@given(st.floats(1e-6, 1e3, allow_nan=False), st.floats(1.0, 1e4), st.integers(2, 9), st.booleans())
def test_points_of_a_range_lie_in_it(low: float, factor: float, count: int, log: bool) -> None:
    d = Dimension("train.lr", "float", low, low * factor, log)
    points = d.points(count)
    assert len(points) == count
    assert points == sorted(points)
    assert all(d.low <= p <= d.high for p in points)


@given(st.integers(1, 1000), st.integers(0, 10_000), st.integers(1, 20))
def test_spaced_integers(low: int, more: int, most: int) -> None:
    found = spaced(low, low + more, most)
    assert found == sorted(set(found))
    assert len(found) <= max(most, 1)
    assert found[0] == low
    assert most == 1 or found[-1] == low + more


def test_grid_fills_the_trials() -> None:
    temperature = parse_space("loss.temperature", "loguniform:0.03:0.5")
    top = parse_space("clusters.top-k", "5,10,20")
    cells = grid([temperature, top], 14)
    assert len(cells) == 12
    assert len({tuple(cell.items()) for cell in cells}) == 12
    values = sorted({decode([temperature, top], cell)["loss.temperature"] for cell in cells})
    assert values[0] == 0.03
    assert values[-1] == 0.5
    assert values[1] / values[0] == pytest.approx(values[2] / values[1], rel=1e-3)
    with pytest.raises(UserError, match="at least 6 cells, more than trials 5"):
        grid([temperature, top], 5)
    assert len(grid([top], 3)) == 3


def test_the_default_is_a_point_or_is_not() -> None:
    dimensions = default_dimensions(given_dimensions(["clusters.top-k=5,20"]))
    assert [d.key for d in dimensions] == ["loss.temperature", "clusters.top-k"]
    assert encode(dimensions, Config()) == {"loss.temperature": 0.2, "clusters.top-k": 1}
    other = Config(loss=LossConfig(temperature=0.9))
    assert encode(dimensions, other) is None


def test_options_from_command_line_and_yaml(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "data: {path: x, label: race}\ntrials: 9\nsearch:\n  train:\n    lr: loguniform:1e-4:1e-2\n"
        "  loss.temperature: [0.1, 0.2]\n"
    )
    words = ["--config", str(file), "--search.loss.temperature", "0.05", "0.1", "--trials", "4"]
    config = parse(words, cls=SearchConfig)
    assert config.search == ("train.lr=loguniform:1e-4:1e-2", "loss.temperature=0.05,0.1")
    assert (config.trials, config.data.label, config.objective) == (4, "race", "knn")
    equals = parse(["--search.train.lr=uniform:1e-4:1e-2", "--seed", "3"], cls=SearchConfig)
    assert equals.search == ("train.lr=uniform:1e-4:1e-2",)
    assert equals.seed == 3
    for wrong in (["--search", "x"], ["--search.train.lr"], ["--searches.train.lr", "1"]):
        with pytest.raises(SystemExit):
            parse(wrong, cls=SearchConfig)
    with pytest.raises(SystemExit):  # pretraining searches nothing
        parse(["--search.train.lr", "1,2"])


def test_trials_are_short_and_the_best_is_whole(tmp_path: Path) -> None:
    config = SearchConfig(train=TrainConfig(epochs=30, audit=True), name="it", resume=True)
    assert (config.epochs, config.least_epochs, config.objective) == (15, 7, "metadata")
    values = {"loss.temperature": 0.1, "clusters.top-k": (5, 40)}
    trial = config.of_trial(values)
    assert (trial.train.epochs, trial.train.audit, trial.evaluate.every) == (15, False, 3)
    assert (trial.loss.temperature, trial.clusters.top_k) == (0.1, (5, 40))
    best = config.best(values)
    assert type(best) is Config
    assert (best.train.epochs, best.name, best.resume) == (30, None, False)
    file = tmp_path / "best.yaml"
    file.write_text(to_yaml(best, "why\nand how"))
    assert parse(["--config", str(file)]) == best
    assert yaml.safe_load(file.read_text())["clusters"] == {"top-k": [5, 40]}
    assert SearchConfig(train=TrainConfig(epochs=6)).epochs == 6

    rounds = SearchConfig(
        clusters=ClustersConfig(kind="kmeans"),
        train=TrainConfig(epochs=40, rounds=20, warmup_rounds=6),
        trial_epochs=10,
    )
    trial = rounds.of_trial({"clusters.k": (7,)})
    assert (trial.train.rounds, trial.train.warmup_rounds) == (10, 6)
    assert rounds.least_epochs == 7
    assert rounds.objective == "rank_me"
    short = SearchConfig(
        clusters=ClustersConfig(kind="kmeans"),
        train=TrainConfig(epochs=40, rounds=20, warmup_rounds=10),
        trial_epochs=5,
    ).of_trial({})
    assert (short.rounds, short.train.warmup_rounds) == (5, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials starts at 1"),
        ({"trial_epochs": 99}, r"more than train\.epochs 20"),
        ({"metric": "knn"}, "needs --data.label"),
        ({"metric": "metadata", "clusters": ClustersConfig(kind="kmeans")}, "needs clusters of"),
        ({"validation": 1.0}, "share in"),
        ({"grace": 99}, "more than the 10 epochs"),
        ({"compare": True}, "no --compare"),
    ],
)
def test_wrong_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SearchConfig(**options)  # type: ignore[arg-type]


def test_mode_follows_the_metric() -> None:
    assert SearchConfig(metric="alignment").mode == "min"
    assert SearchConfig(data=DataConfig(label="x"), metric="probe").mode == "max"
    assert math.isclose(SearchConfig().validation, 0.2)
