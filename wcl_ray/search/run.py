"""The driver of a search: clusters of all candidates → kept images → trials → results.

The search folder holds ``config.json``, ``space.json``, ``trials.json`` (the record of the trials),
``trials/ID`` (their run folders), ``tune`` (Ray Tune's state) and the results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

import numpy as np
import ray

from wcl_ray.clusters.assignment import FILE
from wcl_ray.data.images import Images, open_images
from wcl_ray.data.sources.base import ID, check_paths
from wcl_ray.data.stream import Stream, plan_stream
from wcl_ray.errors import UserError
from wcl_ray.evaluate.left_out import left_out
from wcl_ray.runs.capacity import capacity
from wcl_ray.runs.clusters import check_types, similarity_columns
from wcl_ray.runs.folder import add_faults, claim, open_run
from wcl_ray.runs.initial import Start, check_backbone, start_of, with_image_size
from wcl_ray.runs.moved import (
    TRAIN,
    check_moves,
    find_tables,
    id_summary,
    side_summaries,
    sorted_ids,
)
from wcl_ray.runs.nodes import check_shared, connect
from wcl_ray.runs.preflight import check_labels
from wcl_ray.runs.shared import Shared
from wcl_ray.runs.summary import ResourceSummary, worker_figures
from wcl_ray.search.checks import check_columns, check_point, same_space
from wcl_ray.search.confirm import CHOSEN, CONFIRM, look_up, run_confirm
from wcl_ray.search.granularity import Granularities, find_granularities
from wcl_ray.search.neighbours import CAVEAT, can_judge, read_attributes
from wcl_ray.search.options import SearchConfig
from wcl_ray.search.outcome import Outcome
from wcl_ray.search.record import Record, stored_count
from wcl_ray.search.resources import plan_resources
from wcl_ray.search.results import (
    best_yaml,
    describe,
    results_table,
    score_text,
    settings_table,
    to_parquet,
    verdict_text,
)
from wcl_ray.search.space import (
    Dimension,
    default_dimensions,
    given_dimensions,
    granularity_option,
    grid,
)
from wcl_ray.search.trial import Setup
from wcl_ray.search.tuner import run_trials
from wcl_ray.search.verdict import decide
from wcl_ray.storage import Folder
from wcl_ray.terminal import put, say, warn

SPACE, BEST, RESULTS, PAGE = "space.json", "best.yaml", "results.parquet", "report.html"
VERDICT = "verdict"  # among the details of a search; older versions have none
Page = Callable[[Outcome], str]  # HTML of the report


def search(config: SearchConfig, page: Page, assets: Mapping[str, bytes]) -> Outcome:
    """Start, continue or look up a search; prints its progress.

    Args:
        page: renders the report, which is written after each trial and at the end.
        assets: files that the page loads from its folder, name → content, written once.

    Raises:
        UserError: wrong input or options, before any trial; or every trial failed.
        KeyboardInterrupt: Ctrl-C; the search can be continued.
    """
    with open_run(config, BEST) as (config, folder):
        given = given_dimensions(config.search)
        if folder.exists(BEST):
            granularity = _granularity(config, given)
            outcome = Record(folder, config, granularity).outcome()
            outcome = replace(outcome, confirmed=look_up(folder, config, granularity))
            put(f"{folder.uri} is finished")
            show(folder, outcome)
            return outcome
        config = with_image_size(config)
        check_paths(config.data)
        start = start_of(config, folder)
        check_backbone(start.encoder, config.train.layer_decay)
        for d in default_dimensions(given):  # settings that cannot be trained are an error now
            for point in d.points(2):
                check_point(config, d, point, start)
        connect(config.scale)
        check_shared(folder)
        with ResourceSummary() as usage:
            write = functools.partial(_write, page=page, assets=assets)
            outcome = _search(config, folder, start, given, usage, write)
    put()
    restarts = sum(trial.restarts for trial in outcome.trials)
    trials = [folder / "trials", folder / f"{CONFIRM}/trials"]
    usage.report(worker_figures([runs / name for runs in trials for name in runs.names()]))
    say("trials", f"{len(outcome.trials)}, restarted {restarts} time(s)")
    show(folder, outcome)
    return outcome


def _search(
    config: SearchConfig,
    folder: Folder,
    start: Start,
    given: dict[str, Dimension],
    usage: ResourceSummary,
    write: Callable[[Folder, Outcome], None],
) -> Outcome:
    """Run the search on the connected cluster."""
    images = open_images(
        config.data, config.storage, config.seed, config.validation, find_tables(folder)
    )
    say("images", images.train.describe())
    if images.label is not None:
        for text in left_out(check_labels(images)):
            warn(text)
    if config.metric == "auto" and config.objective == "rank_me":
        warn(
            "no label and no metadata: the objective is rank_me, which ranks runs badly "
            "(see docs/results.md)"
        )
    if config.objective == "metadata":
        warn(f"trials are compared by metadata, {CAVEAT}")
    if config.uses_metadata:
        similarity_columns(config, images)
    if not {"clusters.kind", "clusters.columns"} & given.keys():
        check_types(config, images)
    for d in given.values():
        check_columns(config, images, d)
    with usage.stage("clusters"):
        granularities = find_granularities(config, images, given, folder)
    dimensions = default_dimensions(given)
    if granularities.dimension is not None:
        searched = granularities.dimension
        others = [d for d in dimensions[1:] if d.key != searched.key]
        dimensions = [dimensions[0], searched, *others]
    for d in dimensions:
        say("search", f"{d.key}: {d.describe()}")
    if config.sampler == "grid":  # too many cells are an error now
        say("grid", f"{len(grid(dimensions, config.trials))} cells")
    if folder.exists("config.json") and not config.resume:  # a job took this one for dead
        raise UserError(f"{folder.uri} holds a search already; choose another --name")
    if folder.exists("config.json"):
        check_moves(folder, config.data, images, stored_count(folder))
    with usage.stage("stream"):
        setup = _prepare(config, images, granularities, folder, start, tuple(dimensions))
    claim(folder, config, {TRAIN: id_summary(ray.get(setup.ids))} | side_summaries(images))
    start.keep(folder)
    if not folder.exists(FILE):
        folder.write(FILE, granularities.base.to_parquet())
    space = [asdict(d) for d in dimensions]
    if folder.exists(SPACE) and not same_space(json.loads(folder.read(SPACE)), space):
        raise UserError(
            f"the search space differs from that in {folder.uri}/{SPACE}; have the data changed? "
            "Start a new search under another --name"
        )
    folder.write(SPACE, json.dumps(space, indent=1).encode())
    record = Record(folder, config, setup.granularity)
    measured = min(setup.counts[1], config.evaluate.max_images)
    record.validation = measured if config.objective in ("knn", "probe", "metadata") else 0
    record.details = _details(config, images, setup)
    say("trials", record.details["trials"])
    if not folder.exists(f"{CONFIRM}/{CHOSEN}"):  # if it exists, all trials have ended
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
        record.details["at full length"] = describe(confirmed)
    outcome = replace(outcome, confirmed=confirmed)
    verdict = decide(outcome.compared)
    assert verdict is not None
    record.details[VERDICT] = verdict_text(outcome.compared, verdict)
    record.write()
    outcome = replace(record.outcome(), confirmed=confirmed)
    write(folder, outcome)
    for parent, finished in ((folder, outcome), (folder / CONFIRM, confirmed)):
        for trial in finished.trials if finished else ():  # remove checkpoints, keep encoders
            rounds = parent / f"trials/{trial.id}/rounds"
            for name in rounds.names():
                (rounds / f"{name}/train").remove()
    best = best_yaml(config, outcome)
    assert best is not None
    folder.write(BEST, best.encode())
    return outcome


def _prepare(
    config: SearchConfig,
    images: Images,
    granularities: Granularities,
    folder: Folder,
    start: Start,
    dimensions: tuple[Dimension, ...],
) -> Setup:
    """Keep the images, and put what all trials need into the object store."""
    label = [images.label] if images.label else []
    train_ids, test_ids = (
        sorted_ids(images.metadata((), training=side).select_columns([ID]).to_arrow_refs())
        for side in (True, False)
    )
    batch = _largest_batch(config, dimensions)
    for ids, side, least, hint in (
        (train_ids, "training", batch, "change --validation or lower train.batch-size"),
        (test_ids, "validation", 2, "raise --validation"),
    ):
        if len(ids) < least:
            raise UserError(f"there are {len(ids)} {side} images, fewer than {least}; {hint}")
    if not np.array_equal(np.union1d(train_ids, test_ids), granularities.base.ids):
        raise UserError(
            f"{folder.uri}/{FILE} is not of these images; have the data changed? Start a new "
            "search under another --name"
        )
    source = images.train
    grows = capacity(config.scale).grows
    train = plan_stream(source, train_ids, config.data, grows=grows, columns=label)
    say("stream", train.reason)
    kept: tuple[Stream, Stream] | None = None
    if train.mode != "streaming":
        kept = (train, plan_stream(source, test_ids, config.data, grows=grows, columns=label))
        faults = [*train.faults, *kept[1].faults]
        if faults:
            add_faults(folder, faults)
            say(
                "faults",
                f"{len(faults)} unreadable images are left out, see {folder.uri}/faults.jsonl",
            )
    attributes = None
    if config.has_metadata:
        known, bits = read_attributes(config, images)
        if config.objective == "metadata" and not can_judge(known, bits, test_ids):
            raise UserError(
                "metric metadata needs an attribute that five validation images have and five "
                "others lack; raise --validation, or use another --metric"
            )
        attributes = (ray.put(known), ray.put(bits))
    labels = granularities.labels
    return Setup(
        config=config,
        folder=folder,
        dimensions=dimensions,
        granularity=granularities.dimension.key if granularities.dimension else None,
        images=images,
        kept=kept,
        counts=(len(train_ids), len(test_ids)),
        base=ray.put(granularities.base),
        labels=None if labels is None else ray.put(labels),
        columns=granularities.columns,
        quality={value: q.to_dict() for value, q in granularities.quality.items()},
        ids=ray.put(train_ids),
        start=ray.put(start),
        metadata=attributes,
        resources=plan_resources(config, streamed=kept is None),
        shared=Shared(),
    )


def _largest_batch(config: SearchConfig, dimensions: tuple[Dimension, ...]) -> int:
    """The largest global batch size of any trial."""
    sizes = [d.decode(p) for d in dimensions if d.key == "train.batch-size" for p in d.points(2)]
    return max(sizes or [config.train.batch_size])


def _granularity(config: SearchConfig, given: dict[str, Dimension]) -> str | None:
    return None if "clusters.kind" in given else granularity_option(config.clusters.kind)


def _details(config: SearchConfig, images: Images, setup: Setup) -> dict[str, str]:
    train, validation = setup.counts
    details = {
        "data": images.train.describe(),
        "clusters": config.clusters.kind,
        "images": f"{train:,} for training, {validation:,} for validation"
        + (f", {config.data.split_by} kept whole" if config.data.split_by else ""),
        "trials": f"{config.trials} of {config.epochs} epochs, {setup.resources.describe()}",
        "sampler": config.sampler,
        "early stopping": config.scheduler
        + (f", from epoch {config.least_epochs}" if config.scheduler != "none" else ""),
        "seed": str(config.seed),
    }
    details |= {f"search {d.key}": d.describe() for d in setup.dimensions}
    if setup.metadata is not None:
        details["metadata agreement"] = CAVEAT
    if config.data.label:
        details["label"] = config.data.label
    return details


def _write(folder: Folder, outcome: Outcome, page: Page, assets: Mapping[str, bytes]) -> None:
    folder.write(RESULTS, to_parquet(outcome))
    for name, content in assets.items():
        if not folder.exists(name):
            folder.write(name, content)
    folder.write(PAGE, page(outcome).encode())


def show(folder: Folder, outcome: Outcome) -> None:
    """Print the trials, the settings at full length, the verdict, and the paths of the results."""
    put(f"\n{results_table(outcome)}\n")
    for key, rho in outcome.correlations.items():
        say("ranking", f"{key} against {outcome.metric}: rank correlation {rho:+.2f}")
    if outcome.metric == "metadata" or "metadata" in outcome.correlations:
        say("metadata", CAVEAT)
    compared, topic = outcome.compared, "trial"
    if compared is not outcome:
        topic = "full"
        put(f"\nat full length\n{settings_table(compared)}\n")
    best = compared.best()
    if best is None:
        warn("no trial was evaluated")
        return
    if compared is outcome or VERDICT not in outcome.details:
        error = compared.standard_error()
        text = score_text(compared.metric, best.score) + (f" ± {100 * error:.1f}" if error else "")
        say("best", f"{topic} {best.number}: {compared.metric} {text}")
    if VERDICT in outcome.details:
        say(VERDICT, outcome.details[VERDICT])
    say("search", f"{folder.uri} ({outcome.seconds:.0f} s), see {folder.uri}/{PAGE}")
    say("next", f"python jobs/pretrain.py --config {folder.uri}/{BEST}")
