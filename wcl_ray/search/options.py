"""The options of a search: those of a pretraining run and its own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml

from wcl_ray.config import Config, field_name, not_negative, option_name, require
from wcl_ray.registry import KINDS

Metric = Literal["auto", "knn", "probe", "metadata", "rank_me", "uniformity", "alignment"]
MINIMISED = ("uniformity", "alignment")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(Config):
    """Search temperature and cluster granularity with short pretraining runs (Ray Tune)."""

    trials: int = 16
    """Number of trials; for the sampler grid the largest number."""
    search: tuple[str, ...] = field(default=(), metadata={"open": True})
    """--search.KEY SPACE searches option KEY of pretrain.py, also in YAML (search: {train.lr: …}).
    SPACE: uniform:LOW:HIGH, loguniform:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH, or values A,B,C
    (5+20: several granularities at once). Default: loss.temperature loguniform:0.03:0.5, and
    clusters.top-k, clusters.level or clusters.k, depending on the kind of clusters."""
    trial_epochs: int = 0
    """Epochs of a trial; train.epochs is the length of the run with the best setting. 0: half of
    train.epochs, but at least 8 (or train.epochs)."""
    metric: Metric = "auto"
    """The objective. knn, probe: accuracy on the validation images. metadata: how much neighbours
    share attributes (kNN votes for images with an attribute minus those for images without it);
    these are the attributes that the clusters are made of, so it cannot show whether they matter.
    rank_me, uniformity, alignment: label-free metrics of the features. auto: knn with a label, else
    metadata, else rank_me."""
    validation: float = 0.2
    """Share of the training images that trials are evaluated on. Test images are never read."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are proposed: by Optuna's TPE, at random, or as a full grid."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """How weak trials are stopped early: asynchronous successive halving (at each rung the better
    half continues), the median rule, or not at all."""
    grace: int = 0
    """Epochs that every trial gets before it may be stopped; accuracies before half of a trial say
    little about the last ones. 0: half (with k-means rounds at least one epoch beyond warm-up)."""
    concurrent: int = 0
    """Trials at a time. 0: as many as fit into the cluster at its largest, but at most a quarter of
    the trials."""
    confirm: int = 2
    """Number of the best settings that are trained at full length (train.epochs), together with the
    default one, and compared on the validation images before one is chosen; 0: none."""
    confirm_seeds: int = 3
    """Number of seeds with which each of them is trained at full length: seed, seed + 1, and so on.
    Their scores are averaged, and their spread tells a better setting from noise."""
    prune: bool = True
    """Leave out granularities whose clusters cannot help: nearly all images are singletons, a batch
    holds no positives, there is one cluster, or the clusters are the same as another's."""

    def __post_init__(self) -> None:
        super(SearchConfig, self).__post_init__()  # super() alone does not know slotted classes
        require(self.trials >= 1, "trials starts at 1")
        require(
            0 <= self.trial_epochs <= self.train.epochs,
            f"trial-epochs {self.trial_epochs} is more than train.epochs {self.train.epochs}",
        )
        require(0 < self.validation < 1, f"validation is a share in (0, 1), not {self.validation}")
        require(
            0 <= self.grace <= self.epochs,
            f"grace {self.grace} is more than the {self.epochs} epochs of a trial",
        )
        not_negative("", concurrent=self.concurrent, confirm=self.confirm)
        require(self.confirm_seeds >= 1, "confirm-seeds starts at 1")
        needs_label = self.metric in ("knn", "probe")
        require(
            not needs_label or self.data.label is not None,
            f"metric {self.metric} needs --data.label",
        )
        require(
            self.metric != "metadata" or self.has_metadata,
            "metric metadata needs clusters of attributes, tags or a hierarchy",
        )
        require(not self.compare, "a search has no --compare; use it for the run with best.yaml")

    @property
    def epochs(self) -> int:
        """Epochs of a trial, the default resolved."""
        return self.trial_epochs or min(self.train.epochs, max(8, self.train.epochs // 2))

    @property
    def has_metadata(self) -> bool:
        """Whether there are attributes to compare neighbours by."""
        return bool(KINDS.get(self.clusters.kind).needs == "columns")

    @property
    def objective(self) -> str:
        """The metric, the default resolved."""
        if self.metric != "auto":
            return self.metric
        if self.data.label is not None:
            return "knn"
        return "metadata" if self.has_metadata else "rank_me"

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the objective is minimised."""
        return "min" if self.objective in MINIMISED else "max"

    @property
    def least_epochs(self) -> int:
        """Epochs before a trial may be stopped, the default resolved."""
        if self.grace:
            return self.grace
        least = max(1, self.epochs // 2)
        trial = self.of_trial({})
        if trial.clusters.from_features:
            warmup = trial.train.epochs * trial.warmup_rounds // trial.rounds
            least = max(least, warmup + 1)
        return min(least, self.epochs)

    def plain(self) -> Config:
        """The options of the pretraining run, without those of the search."""
        names = [item.name for item in dataclasses.fields(Config)]
        return Config(**{name: getattr(self, name) for name in names})

    def best(self, values: dict[str, Any]) -> Config:
        """Options of the full run with a setting: dotted keys with dashes → values.

        Raises:
            ValueError: a value out of range.
        """
        config = replace(self.plain(), name=None, resume=False, start_or_resume=False)
        for key, value in values.items():
            config = with_value(config, key, value)
        return config

    def of_trial(self, values: dict[str, Any]) -> Config:
        """Options of the short run of a trial."""
        config, epochs = self.best(values), self.epochs
        train = replace(config.train, epochs=epochs, audit=False)
        if config.clusters.from_features:
            rounds = min(train.rounds, epochs)
            warmup = train.warmup_rounds
            if warmup is not None:
                warmup = max(0, min(warmup, (rounds or min(5, epochs)) - 1))
            train = replace(train, rounds=rounds, warmup_rounds=warmup)
        every = self.evaluate.every or max(1, epochs // 4)
        return replace(config, train=train, evaluate=replace(config.evaluate, every=every))


def with_value(config: Config, key: str, value: Any) -> Config:
    """The configuration with one option changed: ``clusters.top-k``, ``seed``."""
    section, _, name = key.partition(".")
    if not name:
        return replace(config, **{section: value})
    options = replace(getattr(config, section), **{field_name(name): value})
    return replace(config, **{section: options})  # type: ignore[arg-type]


def to_yaml(config: Config, comment: str = "", always: tuple[str, ...] = ()) -> str:
    """YAML for ``--config`` of the options that differ from their defaults.

    Args:
        always: dotted keys with dashes that are written even at their defaults.
    """
    options = config.to_dict()
    tree = _changed(options, Config().to_dict())
    for key in always:
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = options[section][field_name(name)]
        else:
            tree[section] = options[field_name(section)]
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _changed(tree: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in tree.items():
        name = option_name(key)
        if isinstance(value, dict):
            inner = _changed(value, default[key])
            if inner:
                changed[name] = inner
        elif value != default[key]:
            changed[name] = value
    return changed
