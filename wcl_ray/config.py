"""The configuration of a run: every option, its default and its meaning, in one frozen tree.

This is the only place with defaults. The command line, YAML files and ``config.json`` of a run
folder are three notations of the same tree: ``--clusters.top-k 10``, ``clusters: {top-k: 10}`` and
``{"clusters": {"top_k": 10}}``. :mod:`wcl_ray.cli` reads the first two, :mod:`wcl_ray.runs.stored`
the third. Whoever changes a default must raise ``wcl_ray.__version__``, so that runs started with
an older version keep theirs.
"""

from __future__ import annotations

import dataclasses
import keyword
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from wcl_ray.registry import BACKBONES, FORMATS, KINDS, LOSSES, METHODS, TRACKERS, load_plugins

SMALL = 32  # side of the training images, without other weights
# options of k-means, which apply to clusters of features only
KMEANS = (
    "k", "features", "nested", "min_size", "iterations", "spherical", "kernel",
)  # fmt: skip
INSTANCE_WEIGHT = 5.0  # of k-means rounds (docs/results.md)
COLUMN_TYPES = ("number", "category", "boolean", "date", "tags", "place", "text")


def option_name(item: dataclasses.Field[Any] | str) -> str:
    """Command line name of a field: ``top_k`` → ``top-k``, ``from_`` → ``from``."""
    name = item if isinstance(item, str) else item.name
    return name.rstrip("_").replace("_", "-")


def field_name(option: str) -> str:
    """The inverse of :func:`option_name`."""
    name = option.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


class OptionError(Exception):
    """An invalid option of a command line. No ValueError: tyro would draw a box around it."""


_error: ContextVar[type[Exception]] = ContextVar("error", default=ValueError)


@contextmanager
def option_errors() -> Iterator[None]:
    """:func:`require` raises an :class:`OptionError` inside."""
    token = _error.set(OptionError)
    try:
        yield
    finally:
        _error.reset(token)


def require(ok: bool, message: str) -> None:
    """Raise a ValueError with the message unless ``ok``."""
    if not ok:
        raise _error.get()(message)


def not_negative(section: str, **values: float | None) -> None:
    """Raise a ValueError that names the first of a section's options that is below 0."""
    for name, value in values.items():
        option = f"{section}.{option_name(name)}" if section else option_name(name)
        require((value or 0) >= 0, f"{option} is {value}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the images and their metadata are."""

    path: str | None = None
    """Parquet files, an image folder or WebDataset shards: a folder, a file or a glob, local or
    s3://. Without it the built-in demo data is rendered and used."""
    eval_path: str | None = None
    """Test images with the same columns. Without it a share of the images is held out."""
    format: Annotated[
        str,
        FORMATS.option_help("How the images are stored. Default: told by the file names."),
    ] = "auto"
    id: str | None = None
    """Column with a unique id per image (integers or strings). Default: a column called id, else a
    hash of the file's path (for Parquet also of the row number)."""
    image: str | None = None
    """Column with the images: bytes, a {bytes, path} struct, or paths/URIs. Default: found by
    name and type."""
    encoding: str | None = None
    """Encoding of metadata tables and of text in shards, such as cp1252. Default: given by the byte
    order mark, else UTF-8."""
    table: str | None = None
    """Table with metadata of the images, wherever they are: CSV, TSV, JSON lines or Parquet, local
    or s3://. Its columns replace those of the same names. Default: the one at the top of an image
    folder."""
    key: str | None = None
    """Column of the table with the images' ids (of --data.id) or file names, with or without
    folders and suffix; of WebDataset samples: their keys. Default: found by its name,
    else by its texts."""
    label: str | None = None
    """Column with the class, for the evaluation. Clusters are never made of it, except with
    --clusters.kind label."""
    split_by: str | None = None
    """Column (a patient, a unit, a scene) whose images stay on one side of the hold-out split, so
    that no test image has a near duplicate among the training images. Default: split by image."""
    image_size: int = 0
    """Side of the training images, in pixels. 0: that of the images on which --model.weights were
    trained; 32 without any."""
    store_size: int = 0
    """Side of the kept images before the random crop, in pixels; above an image-size of 64 only
    used with data.keep raw. 0: the image-size up to 64, 8/7 of it above."""
    keep: Literal["auto", "raw", "encoded", "indexed", "streaming"] = "auto"
    """Keep decoded pixels (raw) or image files (encoded) in Ray's object store, or read the source
    again in each epoch: files of an image folder on a disk by name (indexed), all else in windows
    (streaming). auto: the first that fits. Above an image-size of 64, raw takes
    crops from the shrunk images, the others from the original pixels."""
    max_bad: float = 0.01
    """Share of unreadable images above which the run stops. Below it they are skipped and listed
    in faults.jsonl."""
    holdout: float = 0.2
    """Share of images held out for evaluation if there is a label but no eval-path."""
    endpoint: str | None = None
    """URL of the S3 endpoint, for stores other than AWS."""
    demo_images: int = 3000
    """Training images of the demo data."""

    def __post_init__(self) -> None:
        FORMATS.check(self.format)
        require(
            self.image_size == 0 or self.image_size >= 8,
            f"data.image-size is {self.image_size}; the minimum is 8",
        )
        require(
            self.store_size == 0 or self.store_size >= (self.image_size or SMALL),
            f"data.store-size {self.store_size} is smaller than data.image-size {self.image_size}",
        )
        require(0 <= self.max_bad <= 1, f"data.max-bad is a share in [0, 1], not {self.max_bad}")
        require(0 < self.holdout < 1, f"data.holdout is a share in (0, 1), not {self.holdout}")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            raise _error.get()(
                f"data.encoding {self.encoding!r} is not known; use one of Python's, such as "
                "utf-8, cp1252, latin-1, utf-16-le, shift_jis or gb18030"
            ) from None
        require(self.demo_images >= 64, "data.demo-images is below 64, the minimum")

    @property
    def crops_files(self) -> bool:
        """Whether images that are not kept decoded are cropped at their original resolution."""
        return self.image_size > 64

    @property
    def stored_size(self) -> int:
        """Side of the kept images in pixels, the default resolved."""
        if self.store_size:
            return self.store_size
        size = self.image_size or SMALL
        return size if size <= 64 else -(-size * 8 // 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClustersConfig:
    """Which images belong together."""

    kind: Annotated[str, KINDS.option_help("What the images of a cluster have in common.")] = (
        "attributes"
    )
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Existing clusters: the folder of another run, or a Parquet, CSV or JSON lines file (path or
    s3:// URI) with a column of ids (id, the one of --data.id, or file_name) and one column per
    granularity, as jobs/cluster.py --out writes it. Empty values and -1: no cluster."""
    columns: tuple[str, ...] = ()
    """Metadata columns to use; for a hierarchy from coarse to fine, or one column of paths (texts
    or lists). With --clusters.from: cluster columns of that table and, for --loss.positives graded,
    metadata columns of the images to weigh them by; a name that both have is used for both.
    Default: every column but id, image, label, row numbers and identifiers."""
    types: tuple[str, ...] = ()
    """Types of metadata columns, as COLUMN=TYPE: number, category, boolean, date, tags, place or
    text. Default: as detected; the table of columns says how."""
    top_k: tuple[int, ...] = (20,)
    """Number of binary attributes in the pattern. Several numbers: several granularities, trained
    on together."""
    level: tuple[int, ...] = ()
    """Depth at which a hierarchy is cut, 1 = coarsest. Several numbers: several granularities.
    Default: the deepest."""
    separator: str = "/"
    """Separator of a hierarchy given as one column of paths."""
    quantiles: int = 4
    """Quantiles of a numeric column; each gives the attribute 'above this quantile'."""
    k: tuple[int, ...] = ()
    """Number of k-means clusters. Several numbers: several granularities, trained on together.
    Default: one for every 50 images, 20,000 at most."""
    features: Literal["projector", "backbone", "metadata"] = "projector"
    """Input of k-means: the projector's output (of SimCLR's, if there is one), the backbone's
    features, or the metadata columns (TF-IDF of words and tags, standardised numbers; clustered
    once, before training)."""
    nested: bool = False
    """With several k, cluster the images at the largest k, and its centroids at the others, so that
    every fine cluster lies inside one coarse cluster."""
    min_size: int = 2
    """Smaller k-means clusters are dissolved into their neighbours."""
    iterations: int = 20
    """Largest number of k-means passes over all images; it stops earlier once it has converged."""
    spherical: Literal["auto", "yes", "no"] = "auto"
    """Spherical k-means (cosine similarity) or k-means of plain vectors. auto: spherical, except
    for metadata."""
    kernel: Literal["auto", "gemm", "faiss", "torch"] = "auto"
    """Search for the nearest k-means centroid: matrix products of numpy, FAISS, or torch. auto:
    torch on GPUs, else gemm (benchmarks/kmeans.py compares them)."""
    missing: Literal["singleton", "kmeans"] = "singleton"
    """Images without any value in the metadata columns: singletons, or clustered by k-means of
    features, again in each round."""
    min_share: float = 0.01
    """Smallest share of images for which an attribute must be true, and for which it must be false;
    others are left out."""
    samples_per_cluster: int = 2
    """Images of one cluster that are put into a batch together (m). 1: plain shuffling."""

    def __post_init__(self) -> None:
        KINDS.check(self.kind)
        require(
            all(k >= 1 for k in self.top_k) and len(self.top_k) >= 1, "clusters.top-k starts at 1"
        )
        require(all(n >= 1 for n in self.level), "clusters.level starts at 1 (the coarsest)")
        require(self.quantiles >= 1, "clusters.quantiles starts at 1")
        self._check_types()
        require(0 <= self.min_share < 0.5, "clusters.min-share is a share in [0, 0.5)")
        require(
            self.samples_per_cluster >= 1,
            "clusters.samples-per-cluster starts at 1 (plain shuffling)",
        )
        require(len(self.separator) > 0, "clusters.separator is empty")
        require(all(k >= 2 for k in self.k), "clusters.k starts at 2")
        require(len(set(self.k)) == len(self.k), "clusters.k repeats a number")
        require(self.min_size >= 1, "clusters.min-size starts at 1")
        require(self.iterations >= 1, "clusters.iterations starts at 1")
        require(
            self.missing == "singleton"
            or KINDS.get(self.kind).needs not in ("features", "nothing"),
            f"clusters.missing {self.missing} has no effect on clusters.kind {self.kind}",
        )
        require(
            self.missing == "singleton" or self.features != "metadata",
            f"clusters.missing {self.missing} is for images without metadata; leave out "
            "clusters.features metadata",
        )
        if self.from_ is None:
            require(self.kind != "table", "clusters.kind table needs --clusters.from RUN or FILE")
        else:
            self._take_table()

    @property
    def column_types(self) -> dict[str, str]:
        """Column → type, of ``types``."""
        return {name: kind for name, _, kind in (text.rpartition("=") for text in self.types)}

    @property
    def uses_types(self) -> bool:
        """Whether the clusters depend on ``types``."""
        encoder = self.kind == "kmeans" and self.features != "metadata"
        return KINDS.get(self.kind).uses_types and not encoder

    def _check_types(self) -> None:
        for text in self.types:
            name, _, kind = text.rpartition("=")
            require(bool(name), f"clusters.types {text!r} is not COLUMN=TYPE")
            require(
                kind in COLUMN_TYPES,
                f"clusters.types {text}: {kind!r} is no type; the types are: "
                f"{', '.join(COLUMN_TYPES)}",
            )
        require(
            len(self.column_types) == len(self.types), "clusters.types gives a column two types"
        )

    def _take_table(self) -> None:
        """Set the kind to ``table``, and refuse options that define other clusters."""
        require(
            self.kind in ("attributes", "table"),
            f"clusters.from takes existing clusters, but clusters.kind {self.kind} makes others; "
            "give one of the two",
        )
        object.__setattr__(self, "kind", "table")
        allowed = {"kind", "from_", "columns", "types", "samples_per_cluster", "missing"}
        allowed |= set(KMEANS) if self.missing == "kmeans" else set()
        for option in dataclasses.fields(self):
            require(
                option.name in allowed or getattr(self, option.name) == option.default,
                f"clusters.from takes existing clusters, but clusters.{option_name(option)} makes "
                "others; give one of the two",
            )

    @property
    def from_features(self) -> bool:
        """Whether clusters depend on the encoder, so that training is done in rounds."""
        encoder = self.kind == "kmeans" and self.features != "metadata"
        return encoder or self.missing == "kmeans"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Cl-InfoNCE (Tsai et al., ICLR 2022)."""

    temperature: float = 0.2
    """τ, by which cosine similarities are divided."""
    estimator: Annotated[str, LOSSES.option_help("The cluster loss.")] = "supcon"
    instance_weight: float | None = None
    """Weight of SimCLR's loss, on a second projector, beside the cluster loss of weight 1; 0: none.
    Default: 5 for k-means rounds, else 0."""
    positives: Literal["cluster", "graded"] = "cluster"
    """cluster: the images of the anchor's cluster. graded: other images of the batch, too, weighted
    by how much metadata they share with the anchor (--clusters.columns)."""
    negatives: Literal["all", "siblings"] = "all"
    """With several levels, from coarse to fine: contrast an image at each level with all others, or
    with its siblings only, the images of the same cluster at the level above."""
    level_weights: tuple[float, ...] = ()
    """Weights of several levels or granularities in the loss. Default: equal ones."""

    def __post_init__(self) -> None:
        LOSSES.check(self.estimator)
        require(
            self.positives == "cluster" or self.estimator != "paper",
            "loss.positives graded needs --loss.estimator supcon",
        )
        require(
            self.negatives == "all" or self.estimator == "supcon",
            "loss.negatives siblings needs --loss.estimator supcon",
        )
        require(
            self.positives == "cluster" or (self.negatives == "all" and not self.level_weights),
            "loss.positives graded has no levels; leave out loss.negatives and loss.level-weights",
        )
        require(
            all(weight >= 0 for weight in self.level_weights)
            and (not self.level_weights or sum(self.level_weights) > 0),
            f"loss.level-weights {' '.join(map(str, self.level_weights))} must not be negative, "
            "nor all 0",
        )
        require(self.temperature > 0, f"loss.temperature is {self.temperature}; it must be above 0")
        not_negative("loss", instance_weight=self.instance_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The encoder."""

    backbone: Annotated[
        str,
        BACKBONES.option_help("The network, as FAMILY, FAMILY:NAME or the NAME of torchvision's."),
    ] = "small"
    projector: tuple[int, ...] = (256, 128)
    """Widths of the projector's layers; the last is the size of the embedding."""
    projector_norm: bool = False
    """Batch normalisation in the projector."""
    weights: str = "none"
    """Weights that the backbone starts from. none: random. pretrained: the library's own, which are
    downloaded. Else a .safetensors or .pth file with names of torchvision, timm or Hugging Face, or
    the folder of a finished run. Images are normalised as for these weights."""
    freeze_stages: int = 0
    """Number of stages that are not trained: the first is the stem (or patch embedding), then come
    the stages of a convolutional network or the blocks of a transformer."""
    drop_path: float | None = None
    """Rate of stochastic depth. Default: that of the library."""

    def __post_init__(self) -> None:
        not_negative("model", freeze_stages=self.freeze_stages)
        require(
            self.freeze_stages == 0 or self.weights != "none",
            "model.freeze-stages would freeze random weights; give --model.weights",
        )
        require(
            self.drop_path is None or 0 <= self.drop_path < 1,
            f"model.drop-path is {self.drop_path}; it must be at least 0 and below 1",
        )
        require(len(self.projector) >= 1, "model.projector needs at least one width")
        require(all(w >= 1 for w in self.projector), "model.projector widths must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """The random augmentations that make two views of an image."""

    crop_min: float = 0.4
    """Smallest share of the image that a random resized crop keeps."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    jitter_strength: float = 0.5
    """Strength s of colour jitter, as in SimCLR: brightness, contrast and saturation change by up
    to 0.8 s, the hue by up to 0.2 s turns of the colour circle."""
    grayscale: float = 0.2
    """Probability of conversion to greyscale."""
    blur: float = 0.0
    """Probability of Gaussian blur (0.5 is usual for 224-pixel images)."""
    solarize: float = 0.0
    """Probability of solarisation."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            p = getattr(self, name)
            require(0 <= p <= 1, f"augment.{name} is a probability in [0, 1], not {p}")
        require(
            0 <= self.jitter_strength <= 1,
            f"augment.jitter-strength is in [0, 1], not {self.jitter_strength}",
        )
        require(0 < self.crop_min <= 1, "augment.crop-min is a share in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the encoder is trained."""

    batch_size: int = 256
    """Images per step over all workers (two views of each)."""
    micro_batch_size: int = 0
    """Largest number of images that each worker has in the network at once, for batches larger than
    the memory for activations; 0: all. The loss is that of the whole batch, and the network runs
    twice. Batch norm uses the statistics of each micro-batch."""
    epochs: int = 20
    """Passes over the images."""
    rounds: int = 0
    """Rounds of clustering and training if clusters depend on features; the epochs are divided
    between them. 0: five, but no more than epochs."""
    warmup_rounds: int | None = None
    """First rounds, which train on single images until the features are worth clustering. Default:
    two of five."""
    lr: float = 0.001
    """Peak learning rate (not scaled by the batch size)."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """adamw, sgd with Nesterov momentum (0.9), or lars (large batches)."""
    weight_decay: float = 1e-4
    """Weight decay; biases, normalisation weights, class tokens, position embeddings and layer
    scales are exempt."""
    warmup: float = 0.1
    """Share of the steps with a linearly rising learning rate, before cosine decay."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it (0.65 to 0.8
    is usual for pretrained transformers)."""
    clip: float = 0.0
    """Largest gradient norm; 0: no clipping."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """auto: bf16 autocast on GPUs that have it, float32 elsewhere. The loss is always float32."""
    compile: bool = False
    """torch.compile the encoder, the views and the loss: about a minute at each start, then faster
    steps on a GPU (benchmarks/gpu.py)."""
    sync_bn: bool = True
    """On several GPUs, batch normalisation over the global batch, as in one process; each layer
    then synchronises the workers. Off, and always on CPUs: over each worker's own images."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0: only by minutes and at the end of epochs."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; 0: off."""
    deterministic: bool = False
    """Deterministic kernels: the same seed, configuration and workers give the same losses."""
    audit: bool = False
    """Write the image ids of every step to the run folder (audit/)."""
    trackers: Annotated[
        tuple[str, ...],
        TRACKERS.option_help("Where metrics are written besides metrics.jsonl and TensorBoard."),
    ] = ("tensorboard", "prometheus")

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "train.batch-size: a contrastive batch needs 2 images")
        require(self.epochs >= 1, "train.epochs starts at 1")
        not_negative(
            "train",
            micro_batch_size=self.micro_batch_size,
            rounds=self.rounds,
            warmup_rounds=self.warmup_rounds,
            weight_decay=self.weight_decay,
            clip=self.clip,
            checkpoint_steps=self.checkpoint_steps,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        require(self.lr > 0, f"train.lr is {self.lr}; it must be above 0")
        require(0 <= self.warmup < 1, "train.warmup is a share in [0, 1)")
        require(
            0 < self.layer_decay <= 1,
            f"train.layer-decay is {self.layer_decay}; it must be above 0 and at most 1",
        )
        for name in self.trackers:
            TRACKERS.check(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleConfig:
    """The workers and resources of a run."""

    workers: str = "auto"
    """Training workers: N, or MIN:MAX for an elastic run. auto: one per GPU of the cluster, or one
    worker if it has none."""
    cpus_per_worker: float = 0
    """CPUs of each worker, including its decoding threads. 0: an even share."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """Train on GPUs: if there are any, always, or never."""
    grows: Literal["auto", "yes", "no"] = "auto"
    """Whether the cluster grows on demand (autoscaler, KubeRay), so that workers may be requested
    that do not fit yet. auto: if its limits can be read, as on the head of a `ray up` cluster."""
    resize_seconds: float = 300
    """Seconds between attempts of an elastic run to grow. Growing restarts it from its last
    checkpoint, so a larger value loses less work if nodes are added one by one."""
    max_failures: int = 3
    """How often training may restart from its last checkpoint after a worker or node is lost."""
    address: str | None = None
    """Ray cluster to use. Default: the one of the job or of RAY_ADDRESS, else a local one."""

    def __post_init__(self) -> None:
        self.range()
        not_negative("scale", cpus_per_worker=self.cpus_per_worker, max_failures=self.max_failures)
        require(
            self.resize_seconds > 0,
            f"scale.resize-seconds is {self.resize_seconds}; it must be above 0",
        )

    def range(self) -> tuple[int, int] | None:
        """(least, most) workers, or None for auto."""
        if self.workers == "auto":
            return None
        parts = self.workers.split(":")
        ok = len(parts) <= 2 and all(p.isdigit() and int(p) >= 1 for p in parts)
        require(ok, f"scale.workers is N, MIN:MAX or auto, not {self.workers!r}")
        low, high = int(parts[0]), int(parts[-1])
        require(low <= high, f"scale.workers {self.workers!r}: MIN is larger than MAX")
        return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """The evaluation of the encoder."""

    every: int = 0
    """Epochs between evaluations during training (kNN, linear probe and label-free metrics, on CPUs
    beside the workers); 0: at the end only."""
    neighbours: int = 20
    """Neighbours of the kNN classifier."""
    max_images: int = 50_000
    """Largest number of images per split that the evaluation embeds (a hash sample)."""

    def __post_init__(self) -> None:
        not_negative("evaluate", every=self.every)
        require(self.neighbours >= 1, "evaluate.neighbours starts at 1")
        require(self.max_images >= 100, "evaluate.max-images is below 100, the minimum")


def _check_name(name: str) -> None:
    """Raise a ValueError unless a folder on any storage can have this name."""
    require("/" not in name, "name must not contain a slash")
    require(name.strip() not in ("", ".", ".."), f"name {name!r} is not a folder name")
    require(name == name.strip(), f"name {name!r} begins or ends with a space")
    require(
        not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name),
        f"name {name!r} contains a line break, a control character, or bytes that are not text",
    )
    length = len(name.encode())
    require(length <= 200, f"name is {length} bytes long; the maximum is 200")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Train an image encoder from images and their metadata (Cl-InfoNCE on Ray)."""

    data: DataConfig = field(default_factory=DataConfig)
    clusters: ClustersConfig = field(default_factory=ClustersConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    method: Annotated[str, METHODS.option_help("How the encoder is trained.")] = "cl-infonce"
    storage: str = "runs"
    """Folder or URI (s3://…) that holds the run folders."""
    name: str | None = None
    """Name of the run folder. Default: built from the data, the kind of clusters and the time."""
    plugins: tuple[str, ...] = ()
    """Modules or .py files that add kinds of clusters, losses, methods, backbones, formats or
    trackers (see docs/extending.md)."""
    seed: int = 0
    """Random seed."""
    compare: bool = False
    """Also train SimCLR (instance clusters) with the same budget and print both (implied by the
    demo data)."""
    resume: bool = False
    """Continue the run of this name, or the newest one with this configuration. With --name,
    data.path may differ if the same images have moved there."""
    start_or_resume: bool = False
    """Continue the run of this name if there is one, else start it: for schedulers that repeat a
    command. Needs --name."""

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_name(self.name)
        require(0 <= self.seed < 2**31, "seed is in [0, 2^31)")
        if not self.data.image_size and self.model.weights == "none":
            object.__setattr__(self, "data", replace(self.data, image_size=SMALL))
        require(not self.start_or_resume or bool(self.name), "start-or-resume needs a --name")
        METHODS.check(self.method)
        if self.method != "cl-infonce":
            self._take_method()
        if self.clusters.kind == "kmeans":
            self._check_kmeans_levels()
        require(
            self.loss.negatives == "all" or self.clusters.missing == "singleton",
            "loss.negatives siblings needs --clusters.missing singleton: k-means of the images "
            "without metadata has no levels",
        )
        rounds, epochs, warmup = self.rounds, self.train.epochs, self.warmup_rounds
        if self.clusters.from_features:
            require(rounds <= epochs, f"train.rounds {rounds} is more than train.epochs {epochs}")
            require(
                warmup < rounds,
                f"train.warmup-rounds {warmup} leaves none of {rounds} rounds for k-means; raise "
                "--train.rounds and --train.epochs, or use --train.warmup-rounds 0",
            )
        else:
            require(
                self.train.rounds <= 1,
                f"train.rounds {self.train.rounds}: clusters of kind {self.clusters.kind} do not "
                "change between rounds; only k-means of features does",
            )

    def _take_method(self) -> None:
        """Set the kind of clusters of a method, and refuse options that it has no use for."""
        method, clusters = METHODS.get(self.method), self.clusters
        if method.kind:
            require(
                clusters.kind in ("attributes", method.kind),
                f"method {self.method} has clusters of kind {method.kind}, but clusters.kind is "
                f"{clusters.kind}; leave it out",
            )
            object.__setattr__(self, "clusters", replace(clusters, kind=method.kind))
        if method.kind == "kmeans":
            require(
                self.clusters.from_features,
                f"method {self.method} clusters the encoder's features, not metadata; leave out "
                "clusters.features",
            )
        elif method.needs == "prototypes":
            require(
                len(clusters.k) <= 1,
                f"method {self.method} has one set of prototypes, but clusters.k has "
                f"{len(clusters.k)} numbers",
            )
        require(
            method.needs != "label" or self.data.label is not None,
            f"method {self.method} needs --data.label",
        )
        for item in dataclasses.fields(LossConfig):
            require(
                item.name == "temperature" or getattr(self.loss, item.name) == item.default,
                f"loss.{option_name(item)} has no effect on method {self.method}; it is for "
                "cl-infonce",
            )

    @property
    def uses_metadata(self) -> bool:
        """Whether training reads the attributes of the images, besides their clusters."""
        if self.method == "cl-infonce":
            return self.loss.positives == "graded"
        return bool(METHODS.get(self.method).needs == "metadata")

    def _check_kmeans_levels(self) -> None:
        """Raise a ValueError if the loss has other levels than the clusters will have."""
        k, weights = self.clusters.k, self.loss.level_weights
        require(
            len(weights) in (0, max(1, len(k))),
            f"loss.level-weights has {len(weights)} number(s), but clusters.k {max(1, len(k))}",
        )
        require(
            self.loss.negatives == "all"
            or (self.clusters.nested and len(k) > 1 and list(k) == sorted(k)),
            "loss.negatives siblings needs --clusters.nested, and several --clusters.k from the "
            "smallest to the largest",
        )

    @property
    def rounds(self) -> int:
        """Rounds of clustering and training, the default resolved."""
        if not self.clusters.from_features:
            return 1
        return self.train.rounds or min(5, self.train.epochs)

    @property
    def warmup_rounds(self) -> int:
        """First rounds without clusters, the default resolved."""
        given = self.train.warmup_rounds
        return max(1, self.rounds * 2 // 5) if given is None else given

    @property
    def instance_weight(self) -> float:
        """Weight of SimCLR's loss on a second projector, the default resolved; 0: no projector."""
        if self.loss.instance_weight is not None:
            return self.loss.instance_weight
        rounds = self.method == "cl-infonce" and self.clusters.kind == "kmeans"
        return INSTANCE_WEIGHT if rounds and self.clusters.from_features else 0.0

    @property
    def feature_head(self) -> int:
        """Index of the projector whose output is clustered and exported: SimCLR's if there are
        two."""
        return 1 if self.instance_weight else 0

    def to_dict(self) -> dict[str, Any]:
        """The options as a nested dict of JSON types (tuples as lists)."""
        return _jsonable(dataclasses.asdict(self))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value


def from_dict(tree: dict[str, Any], cls: type = Config) -> Any:
    """The inverse of :meth:`Config.to_dict`.

    Raises:
        ValueError: an unknown key or a value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = set(tree) - set(fields)
    require(not unknown, f"unknown keys in a stored configuration: {', '.join(sorted(unknown))}")
    load_plugins(tree.get("plugins", ()))
    values: dict[str, Any] = {}
    for key, value in tree.items():
        factory: Any = fields[key].default_factory
        if isinstance(factory, type):
            values[key] = from_dict(value, factory)
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)
