"""The driver of a search: clusters of all candidates → kept images → trials → results.

The search folder holds ``config.json``, ``space.json``, ``trials.json`` (what is known of every
trial), ``trials/ID`` (their run folders), ``tune`` (Ray Tune's own state) and the results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.data import Dataset

from wcl_ray.clusters.assignment import FILE
from wcl_ray.clusters.metadata import columns_of
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.sources.base import ID, check_paths
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.model.encoder import EncoderSpec
from wcl_ray.registry import KINDS
from wcl_ray.runs.capacity import capacity
from wcl_ray.runs.folder import add_faults, claim, open_run
from wcl_ray.runs.moved import TRAIN, check_moves, facts_of, facts_of_tests
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.preflight import check_backbone, check_labels
from wcl_ray.runs.shared import Shared
from wcl_ray.runs.summary import ResourceSummary, worker_figures
from wcl_ray.search.confirm import CHOSEN, CONFIRM, in_words, look_up, run_confirm
from wcl_ray.search.granularity import Granularities, find_granularities
from wcl_ray.search.neighbours import CAVEAT, judged, read_attributes
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome
from wcl_ray.search.record import Record, stored_count
from wcl_ray.search.results import best_yaml, results_table, score_text, to_parquet
from wcl_ray.search.share import plan_share
from wcl_ray.search.space import (
    Dimension,
    default_dimensions,
    given_dimensions,
    granularity_option,
    grid,
)
from wcl_ray.search.trial import Setup
from wcl_ray.search.tuner import run_trials
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn

SPACE, BEST, RESULTS, PAGE = "space.json", "best.yaml", "results.parquet", "report.html"
Page = Callable[[Outcome], str]  # HTML of the report


def search(config: SearchConfig, page: Page, assets: Mapping[str, bytes]) -> Outcome:
    """Run, continue or look up a search; prints its progress.

    Args:
        page: the HTML of the report, written after each trial and at the end.
        assets: files that the page loads from its folder, name → content, written once.

    Raises:
        UserError: wrong input or options, before any trial; or every trial failed.
        KeyboardInterrupt: Ctrl-C; the search can be continued.
    """
    with open_run(config, BEST) as (config, folder):
        given = given_dimensions(config.search)
        if folder.exists(BEST):
            outcome = Record(folder, config, _granularity(config, given)).outcome()
            put(f"{folder.uri} is finished")
            show(folder, outcome, look_up(folder, config, _granularity(config, given)))
            return outcome
        check_paths(config.data)
        for d in default_dimensions(given):  # what cannot be trained is found at once
            for point in d.points(2):
                _check(config, d, point)
        check_backbone(EncoderSpec(config.model, config.data.image_size, config.loss.dual))
        connect(config.scale)
        check_shared(folder)
        with ResourceSummary() as usage:
            outcome = _search(
                config, folder, given, usage, functools.partial(_write, page=page, assets=assets)
            )
    put()
    restarts = sum(trial.restarts for trial in outcome.trials)
    runs = [folder / f"{part}trials" for part in ("", f"{CONFIRM}/")]
    usage.report(worker_figures([where / name for where in runs for name in where.names()]))
    say("trials", f"{len(outcome.trials)}, restarted {restarts} time(s)")
    show(folder, outcome, look_up(folder, config, outcome.granularity))
    return outcome


def _search(
    found: SearchConfig,
    folder: Folder,
    given: dict[str, Dimension],
    usage: ResourceSummary,
    write: Callable[[Folder, Outcome], None],
) -> Outcome:
    """The search itself, on a cluster that is joined."""
    config = found
    images = open_images(config.data, config.storage, config.seed, config.validation)
    say("images", images.train.describe())
    if images.label is not None:
        for text in left_out(check_labels(images)):
            warn(text)
    if config.metric == "auto" and config.objective == "rank_me":
        warn(
            "no label and no metadata: rank_me decides, which ranks runs badly "
            "(see docs/results.md)"
        )
    if config.objective == "metadata":
        warn(f"trials are compared by metadata, {CAVEAT}")
    for d in given.values():
        _check_columns(config, images, d)
    with usage.stage("clusters"):
        granularities = find_granularities(config, images, given, folder)
    dimensions = default_dimensions(given)
    if granularities.dimension is not None:
        own = granularities.dimension
        dimensions = [dimensions[0], own, *(d for d in dimensions[1:] if d.key != own.key)]
    for d in dimensions:
        say("search", f"{d.key}: {d.describe()}")
    if config.sampler == "grid":  # too many cells are an error before any work
        say("grid", f"{len(grid(dimensions, config.trials))} cells")
    if folder.exists("config.json") and not config.resume:  # by a job that took this one for lost
        raise UserError(f"{folder.uri} holds a search already; choose another --name")
    if folder.exists("config.json"):
        check_moves(folder, found.data, images, stored_count(folder))
    with usage.stage("stream"):
        prepared = _prepare(config, images, granularities, folder, tuple(dimensions))
    setup = prepared.setup
    claim(folder, found, {TRAIN: facts_of(ray.get(setup.ids))} | facts_of_tests(images))
    if not folder.exists(FILE):
        folder.write(FILE, granularities.base.to_parquet())
    space = [asdict(d) for d in dimensions]
    if folder.exists(SPACE) and not _same_space(json.loads(folder.read(SPACE)), space):
        raise UserError(
            f"the space that is searched is no longer that of {folder.uri}/{SPACE}; have the data "
            "changed? Start a new search under another --name"
        )
    folder.write(SPACE, json.dumps(space, indent=1).encode())
    record = Record(folder, config, setup.granularity)
    measured = min(setup.counts[1], config.evaluate.max_images)
    record.validation = measured if config.objective in ("knn", "probe", "metadata") else 0
    record.facts = _facts(config, images, setup, prepared)
    say("trials", f"{config.trials} of {config.epochs} epochs, {setup.share.describe()}")
    if not folder.exists(f"{CONFIRM}/{CHOSEN}"):  # else all trials have ended before
        with usage.stage("trials"):
            if run_trials(setup, record, lambda: write(folder, record.outcome())):
                raise KeyboardInterrupt
    outcome = record.outcome()
    if outcome.best() is None:
        write(folder, outcome)
        first = next((t.error for t in outcome.trials if t.error), "no trial was evaluated")
        raise UserError(f"every trial failed: {first}")
    confirmed = None
    if config.confirm and config.epochs < config.train.epochs:
        with usage.stage("confirm"):
            confirmed, interrupted = run_confirm(setup, record, write)
        if interrupted:
            raise KeyboardInterrupt
    if confirmed is not None:
        record.facts["at full length"] = in_words(confirmed)
        record.write()
        outcome = record.outcome()
    write(folder, outcome)
    for where, of_search in ((folder, outcome), (folder / CONFIRM, confirmed)):
        for trial in of_search.trials if of_search else ():  # their encoders stay
            rounds = where / f"trials/{trial.id}/rounds"
            for name in rounds.names():
                (rounds / f"{name}/train").remove()
    best = best_yaml(found, outcome, confirmed)
    assert best is not None
    folder.write(BEST, best.encode())
    return outcome


@dataclass(frozen=True)
class _Prepared:
    setup: Setup
    stream: str


def _prepare(
    config: SearchConfig,
    images: Images,
    found: Granularities,
    folder: Folder,
    dimensions: tuple[Dimension, ...],
) -> _Prepared:
    """Keep the images, and put what all trials need into the object store."""
    label = [images.label] if images.label else []
    ids = {side: _ids(images.metadata((), training=side)) for side in (True, False)}
    for side, name in ((True, "training"), (False, "validation")):
        least = _largest_batch(config, dimensions) if side else 2
        if len(ids[side]) < least:
            hint = "change --validation or lower train.batch-size" if side else "raise --validation"
            raise UserError(f"there are {len(ids[side])} {name} images, fewer than {least}; {hint}")
    if not np.array_equal(np.union1d(ids[True], ids[False]), found.base.ids):
        raise UserError(
            f"{folder.uri}/{FILE} is not of these images; have the data changed? Start a new "
            "search under another --name"
        )
    rows = images.without_validation().train.images(label)
    grows = capacity(config.scale).grows
    train = plan_stream(rows, ids[True], config.data, grows=grows)
    say("stream", train.reason)
    kept: tuple[Stream, Stream] | None = None
    if train.mode != "streaming":
        kept = (train, plan_stream(rows, ids[False], config.data, grows=grows))
        faults = [*train.faults, *kept[1].faults]
        if faults:
            add_faults(folder, faults)
            say(
                "faults",
                f"{len(faults)} unreadable images are left out, see {folder.uri}/faults.jsonl",
            )
    compared = None
    if config.has_metadata:
        known, bits = read_attributes(config, images)
        if config.objective == "metadata" and not judged(known, bits, ids[False]):
            raise UserError(
                "metric metadata: no attribute is had by five validation images and lacked by five "
                "others; raise --validation, or use another --metric"
            )
        compared = (ray.put(known), ray.put(bits))
    setup = Setup(
        config=config,
        folder=folder,
        dimensions=dimensions,
        granularity=found.dimension.key if found.dimension else None,
        images=images,
        kept=kept,
        counts=(len(ids[True]), len(ids[False])),
        base=ray.put(found.base),
        labels=None if found.labels is None else ray.put(found.labels),
        columns=found.columns,
        quality={value: q.to_dict() for value, q in found.quality.items()},
        ids=ray.put(ids[True]),
        metadata=compared,
        share=plan_share(config, streamed=kept is None),
        shared=Shared(),
    )
    return _Prepared(setup, train.reason)


def _largest_batch(config: SearchConfig, dimensions: tuple[Dimension, ...]) -> int:
    """The largest global batch of any trial."""
    sizes = [d.decode(p) for d in dimensions if d.key == "train.batch-size" for p in d.points(2)]
    return max(sizes or [config.train.batch_size])


def _same_space(stored: list[dict[str, Any]], space: list[dict[str, Any]]) -> bool:
    """Whether a stored space, perhaps of a version with other fields, is this one."""
    now = json.loads(json.dumps(space))
    both = zip(stored, now, strict=False)
    return len(stored) == len(now) and all(
        old[field] == new[field] for old, new in both for field in old.keys() & new.keys()
    )


def _ids(rows: Dataset) -> np.ndarray:
    """int64 (N,), sorted."""
    refs = rows.select_columns([ID]).to_arrow_refs()
    parts = [table[ID].to_numpy() for table in ray.get(refs) if table.num_rows]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _check(config: SearchConfig, dimension: Dimension, point: Any) -> None:
    try:
        trial = config.of_trial({dimension.key: dimension.decode(point)})
    except ValueError as error:  # it does not go with the other options
        raise UserError(f"search.{dimension.key}: {error}") from None
    most = (trial.scale.range() or (1, 1))[1]
    if trial.train.batch_size < 2 * most:
        raise UserError(
            f"search.train.batch-size {trial.train.batch_size} is too small for {most} workers: "
            "each needs at least 2 images of a batch"
        )
    if dimension.key.startswith("model."):
        check_backbone(EncoderSpec(trial.model, trial.data.image_size, trial.loss.dual))


def _check_columns(config: SearchConfig, images: Images, dimension: Dimension) -> None:
    """Whether the clusters of every value can be made of the columns there are."""
    key = dimension.key
    if not key.startswith("clusters."):
        return
    kinds = [config.clusters.kind]
    for point in dimension.points(2):
        clusters = config.of_trial({key: dimension.decode(point)}).clusters
        if clusters.from_ is None:
            images.train.check_columns(clusters.columns, f"search.{key}")
        columns_of(clusters, images.label, images.available)
        kinds.append(clusters.kind)
    own = {kind for kind in KINDS.names() if granularity_option(kind) == key}
    if own and not own & set(kinds):
        raise UserError(
            f"search.{key} has no effect on clusters of kind {config.clusters.kind}; it is for "
            f"{' and '.join(sorted(own))}"
        )


def _granularity(config: SearchConfig, given: dict[str, Dimension]) -> str | None:
    return None if "clusters.kind" in given else granularity_option(config.clusters.kind)


def _facts(
    config: SearchConfig, images: Images, setup: Setup, prepared: _Prepared
) -> dict[str, str]:
    train, held = setup.counts
    facts = {
        "data": images.train.describe(),
        "clusters": config.clusters.kind,
        "images": f"{train:,} for training, {held:,} for validation"
        + (f", {config.data.split_by} kept whole" if config.data.split_by else ""),
        "trials": f"{config.trials} of {config.epochs} epochs, {setup.share.describe()}",
        "sampler": config.sampler,
        "early stopping": config.scheduler
        + (f", from epoch {config.least_epochs}" if config.scheduler != "none" else ""),
        "seed": str(config.seed),
    }
    facts |= {f"search {d.key}": d.describe() for d in setup.dimensions}
    if setup.metadata is not None:
        facts["metadata agreement"] = CAVEAT
    if config.data.label:
        facts["label"] = config.data.label
    return facts


def _write(folder: Folder, outcome: Outcome, page: Page, assets: Mapping[str, bytes]) -> None:
    folder.write(RESULTS, to_parquet(outcome))
    for name, content in assets.items():
        if not folder.exists(name):
            folder.write(name, content)
    folder.write(PAGE, page(outcome).encode())


def show(folder: Folder, outcome: Outcome, confirmed: Outcome | None = None) -> None:
    """Print the trials, those at full length, and where everything is."""
    put(f"\n{results_table(outcome)}\n")
    for key, rho in outcome.correlations.items():
        say("ranking", f"{key} against {outcome.metric}: rank correlation {rho:+.2f}")
    if outcome.metric == "metadata" or "metadata" in outcome.correlations:
        say("metadata", CAVEAT)
    which = "trial"
    if confirmed is not None and confirmed.best() is not None:
        which = "full"
        put(f"\nat full length\n{results_table(confirmed)}\n")
        outcome = replace(confirmed, seconds=outcome.seconds)
    best = outcome.best()
    if best is None:
        warn("no trial was evaluated")
        return
    error = outcome.standard_error()
    text = score_text(outcome.metric, best.score) + (f" ± {100 * error:.1f}" if error else "")
    say("best", f"{which} {best.number}: {outcome.metric} {text}")
    say("search", f"{folder.uri} ({outcome.seconds:.0f} s), see {folder.uri}/{PAGE}")
    say("next", f"python jobs/pretrain.py --config {folder.uri}/{BEST}")
