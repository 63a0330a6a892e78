"""When a search names a setting, and when it says that the defaults are within noise of it."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wcl_ray.cli import parse
from wcl_ray.config import DataConfig, TrainConfig
from wcl_ray.report.search import page
from wcl_ray.search.confirm import points_to_run
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome, Trial
from wcl_ray.search.results import best_yaml, describe, settings_table, verdict_text
from wcl_ray.search.run import VERDICT, show
from wcl_ray.search.space import decode, parse_space
from wcl_ray.search.verdict import Verdict, decide, settings_of
from wcl_ray.storage import Folder

TAU = "loss.temperature"
DEFAULT, BETTER, WORSE = 0.2, 0.1, 0.3


def runs(scores: dict[float, list[float | None]], **more: Any) -> Outcome:
    """Temperature → its score with every seed; None: the run failed."""
    trials = []
    for tau, by_seed in scores.items():
        for seed, score in enumerate(by_seed):
            status: Any = "failed" if score is None else "finished"
            values = {TAU: tau, "seed": seed + 7}
            trials.append(
                Trial(len(trials), f"t{len(trials)}", status, values, 20, score,
                      default=tau == DEFAULT)
            )  # fmt: skip
    known: dict[str, Any] = {"metric": "knn", "mode": "max", "validation": 10_000}
    return Outcome("confirm", epochs=20, granularity=None, trials=tuple(trials), **(known | more))


def verdict(outcome: Outcome) -> Verdict:
    result = decide(outcome)
    assert result is not None
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("better", "validation", "seeds", "share"),
    [
        (0.0, 10_000, 3, 0.10),
        (0.0, 10_000, 2, 0.15),
        (0.0, 1_000, 3, 0.06),
        (2.0, 10_000, 3, 0.83),
        (2.0, 1_000, 3, 0.82),
    ],
)
def test_how_often_a_setting_is_named(
    better: float, validation: int, seeds: int, share: float
) -> None:
    """docs/search.md: two finalists, a standard deviation of 1.3 points."""
    rng, spread, named = np.random.default_rng(0), 0.013, 0
    for _ in range(2_000):
        scores = rng.normal(0.6, spread, (3, seeds))
        scores[:2] += better * spread
        outcome = runs(dict(zip((BETTER, WORSE, DEFAULT), scores.tolist(), strict=True)))
        named += not verdict(replace(outcome, validation=validation)).named.default
    assert named / 2_000 == pytest.approx(share, abs=0.02)


def test_a_setting_is_named_only_beyond_two_standard_errors() -> None:
    outcome = runs({BETTER: [0.60, 0.62, 0.64], DEFAULT: [0.58, 0.60, 0.62]})
    noise = 2 * math.sqrt(2 * 0.02**2 / 3)  # 0.0327, more than the gap of 0.02
    result = verdict(outcome)
    assert result.noise == pytest.approx(noise)
    assert result.named.default
    assert result.best.values == {TAU: BETTER}
    assert result.best.mean == pytest.approx(0.62)
    assert result.best.spread == pytest.approx(statistics.stdev([0.60, 0.62, 0.64]))
    text = verdict_text(outcome, result)
    assert text == (
        "the defaults are within noise of the best (temperature 0.1): knn 62.0% ± 2.0 (3 seeds) "
        "against 60.0% ± 2.0 (3 seeds), noise 3.3"
    )
    clear = runs({BETTER: [0.63, 0.65, 0.67], DEFAULT: [0.58, 0.60, 0.62]})
    assert verdict(clear).named.values == {TAU: BETTER}
    assert verdict_text(clear, verdict(clear)).startswith("temperature 0.1 is better than the def")


def test_a_tie_goes_to_the_defaults() -> None:
    tie = runs({BETTER: [0.6, 0.6], DEFAULT: [0.6, 0.6]}, metric="metadata")
    assert verdict(tie).named.default
    assert (
        verdict_text(tie, verdict(tie))
        == "the defaults are the best: metadata 60.0% ± 0.0 (2 seeds)"
    )
    single = runs({BETTER: [0.6], DEFAULT: [0.6]}, metric="rank_me")
    assert verdict(single).named.default


def test_seeds_that_agree_do_not_hide_the_noise_of_the_images() -> None:
    scores: dict[float, list[float | None]] = {BETTER: [0.61, 0.61, 0.61], DEFAULT: [0.6, 0.6, 0.6]}
    few = runs(scores, validation=100)
    assert verdict(few).named.default
    assert verdict(few).noise == pytest.approx(few.standard_error())
    assert not verdict(runs(scores, validation=100_000)).named.default
    assert not verdict(runs(scores, metric="metadata")).named.default  # its images are no sample


def test_low_is_good_where_the_metric_is_minimised() -> None:
    low = {"metric": "uniformity", "mode": "min", "validation": 0}
    outcome = runs({BETTER: [-3.0, -3.1], DEFAULT: [-2.0, -2.1], WORSE: [-1.0, -1.1]}, **low)
    assert [s.values[TAU] for s in settings_of(outcome)] == [BETTER, DEFAULT, WORSE]
    assert verdict(outcome).named.values == {TAU: BETTER}
    near = runs({BETTER: [-2.1, -2.3], DEFAULT: [-2.0, -2.2]}, **low)
    assert verdict(near).named.default
    assert "uniformity -2.200 ± 0.141 (2 seeds) against -2.100" in verdict_text(near, verdict(near))


def test_a_steady_setting_is_named_before_a_better_one_that_may_be_luck() -> None:
    outcome = runs(
        {WORSE: [0.50, 0.70, 0.90], BETTER: [0.65, 0.66, 0.67], DEFAULT: [0.59, 0.60, 0.61]}
    )
    assert verdict(outcome).best.values == {TAU: WORSE}
    assert verdict(outcome).named.values == {TAU: BETTER}


def test_runs_that_failed() -> None:
    outcome = runs({BETTER: [0.70, None, 0.72], DEFAULT: [0.6, None, None], WORSE: [None] * 3})
    better, default = settings_of(outcome)  # nothing is known of the third
    assert (better.runs, better.scores, default.scores) == (3, (0.70, 0.72), (0.6,))
    spread = better.spread or 0  # that of the default is taken to be the same
    assert verdict(outcome).noise == pytest.approx(2 * math.sqrt(spread**2 / 2 + spread**2))
    assert verdict(outcome).named is not default
    assert "71.0% ± 1.4 (2 of 3 seeds)" in describe(outcome)
    assert "failed" in settings_table(outcome)
    gone = runs({BETTER: [0.5, 0.5], DEFAULT: [None, None]})
    assert verdict(gone).named.values == {TAU: BETTER}
    assert "the defaults have no score" in verdict_text(gone, verdict(gone))
    outside = runs({BETTER: [0.5, 0.5]})
    assert "the defaults were not tried" in verdict_text(outside, verdict(outside))
    assert decide(runs({BETTER: [None]})) is None


def test_one_seed_needs_two_standard_errors_of_the_images() -> None:
    near = runs({BETTER: [0.64], DEFAULT: [0.58]}, validation=1000)  # one standard error is 0.0152
    assert not verdict(near).named.default
    assert verdict(runs({BETTER: [0.64], DEFAULT: [0.62]}, validation=1000)).named.default
    unknown = runs({BETTER: [40.0], DEFAULT: [30.0]}, metric="rank_me")
    assert verdict(unknown).named.values == {TAU: BETTER}
    assert "noise unknown with one seed" in verdict_text(unknown, verdict(unknown))


def trials_of_a_search() -> Outcome:
    """Short trials, one of each setting, without seeds."""
    short = runs({BETTER: [0.65], DEFAULT: [0.50], WORSE: [0.40]})
    trials = tuple(replace(t, values={TAU: t.values[TAU]}, epoch=8) for t in short.trials)
    return replace(short, name="it", epochs=8, trials=trials)


def test_the_defaults_are_written_if_they_are_within_noise(tmp_path: Path) -> None:
    config = SearchConfig(data=DataConfig(path="x"), train=TrainConfig(epochs=20), trial_epochs=8)
    full = runs({BETTER: [0.60, 0.62, 0.64], DEFAULT: [0.58, 0.60, 0.62]})
    outcome = replace(trials_of_a_search(), confirmed=full)
    text = best_yaml(config, outcome)
    assert text is not None
    assert "# The defaults are within noise of the best (temperature 0.1): knn 62.0% ±" in text
    assert "# From 6 full runs of settings chosen from 3 trials of search it on 10,000" in text
    (tmp_path / "best.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "best.yaml")]) == config.best({})
    html = page(outcome)
    assert "The defaults are within noise of the best (temperature 0.1): knn 62.0%" in html
    assert "after all 20 epochs" in html
    assert "<h2>At full length</h2>" in html
    assert "temperature: 0.1" in str(best_yaml(config, trials_of_a_search()))  # 15 points apart


def test_a_search_prints_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    full = runs({BETTER: [0.60, 0.62, 0.64], DEFAULT: [0.58, 0.60, None]})
    outcome = replace(trials_of_a_search(), confirmed=full)
    show(Folder("x"), replace(outcome, details={VERDICT: "the defaults are it"}))
    printed = capsys.readouterr().out
    assert "the defaults are it" in printed
    assert "60.0% 62.0% 64.0%" in printed
    assert "best  " not in printed
    show(Folder("x"), outcome)  # of a version without verdicts: the best is in best.yaml
    assert "full 2: knn 64.0%" in capsys.readouterr().out


def test_every_setting_has_every_seed() -> None:
    space = (parse_space(TAU, "loguniform:0.01:0.1"), parse_space("clusters.top-k", "5,5+20"))
    settings = [{TAU: 0.05, "clusters.top-k": (5, 20)}, {TAU: 0.2, "clusters.top-k": (20,)}]
    chosen = json.loads(json.dumps({"seeds": 3, "settings": settings}))
    dimensions, points = points_to_run(space, chosen, 2**31 - 2)
    values = [decode(dimensions, point) for point in points]
    seeds = (2**31 - 2, 2**31 - 1, 0)
    assert values == [{**setting, "seed": seed} for seed in seeds for setting in settings]
    config = SearchConfig(data=DataConfig(path="x")).of_trial(values[-1])
    assert (config.seed, config.loss.temperature, config.clusters.top_k) == (0, 0.2, (20,))
    with pytest.raises(ValueError, match="confirm-seeds starts at 1"):
        SearchConfig(data=DataConfig(path="x"), confirm_seeds=0)
    # of a search that an older version began: the points it had chosen, with the search's seed
    old = [{TAU: 0.05, "clusters.top-k": 1}]
    assert points_to_run(space, old, 7) == (space, old)
