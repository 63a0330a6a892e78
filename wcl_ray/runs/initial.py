"""The weights that training starts from, found and kept for the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from wcl_ray.clusters.assignment import Assignment
from wcl_ray.clusters.features import choose_k
from wcl_ray.clusters.similarity import MetadataBits
from wcl_ray.config import Config
from wcl_ray.errors import UserError
from wcl_ray.model.encoder import (
    Encoder,
    EncoderSpec,
    build_backbone,
    load_backbone,
    read_metadata,
    statistics_of,
    wrong_size,
)
from wcl_ray.model.fit_state import listed
from wcl_ray.model.layers import layer_numbers
from wcl_ray.model.weights import (
    Weights,
    expected_images,
    file_weights,
    published_weights,
    start_encoder,
)
from wcl_ray.registry import METHODS
from wcl_ray.runs.folder import ENCODER
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn

FILE = "initial.safetensors"  # of a run with --model.weights

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Start:
    """How the encoder of a run begins.

    Attributes:
        encoder: what it is built from.
        weights: content of ``initial.safetensors``; None: random weights.
    """

    encoder: EncoderSpec
    weights: bytes | None = field(default=None, repr=False)

    def build_encoder(self) -> Encoder:
        """The encoder; torch's generator gives the random weights."""
        encoder = self.encoder.build()
        if self.weights is not None:
            load_backbone(encoder.backbone, self.weights)
        return encoder

    def with_method(
        self, config: Config, clusters: Assignment, metadata: MetadataBits | None
    ) -> Start:
        """The same with the projectors and modules of the method, whose sizes the data give.

        Args:
            clusters: of the training images, before any round.
            metadata: their attributes, if the method needs them.

        Raises:
            UserError: more prototypes than images.
        """
        sizes: tuple[int, ...] = ()
        method = METHODS.get(config.method)
        if method.needs == "label":
            sizes = (int(clusters.clusters[:, 0].max()) + 1,)
        elif method.needs == "metadata" and metadata is not None:
            sizes = (metadata.count,)
        elif method.needs == "prototypes":
            sizes = choose_k(config.clusters, len(clusters.ids))
            if not config.clusters.from_features and not config.clusters.k:
                sizes = (min(sizes[0], config.train.batch_size),)
        dual = bool(config.instance_weight)
        encoder = replace(self.encoder, dual=dual, method=config.method, sizes=sizes)
        return replace(self, encoder=encoder)

    def adapt(self, config: Config) -> Start | None:
        """The same weights with other options of training; None if these want other weights."""
        wanted, given = (
            (spec.model.backbone, spec.model.weights, spec.image_size)
            for spec in (spec_of(config), self.encoder)
        )
        if wanted != given:
            return None
        return replace(self, encoder=replace(spec_of(config), statistics=self.encoder.statistics))

    def keep(self, run: Folder) -> None:
        """Write the weights to the run, which then no longer needs their source."""
        if self.weights is not None and not run.exists(FILE):
            run.write(FILE, self.weights)


def with_image_size(config: C) -> C:
    """The configuration with ``data.image_size`` as the weights want it, if it is not given.

    Raises:
        UserError: weights that cannot be read, or ``data.store_size`` is below their size.
    """
    if config.data.image_size:
        return config
    source, name = config.model.weights, config.model.backbone
    if source == "pretrained":
        size = expected_images(build_backbone(name, 224))[1]
    else:
        size = _read(source, config).image_size
    try:
        return replace(config, data=replace(config.data, image_size=size))
    except ValueError as error:
        raise UserError(f"{error}, the size for which model.weights {source} are made") from None


def spec_of(config: Config) -> EncoderSpec:
    """What the encoder of a configuration is built from, with random weights."""
    return EncoderSpec(config.model, config.data.image_size, bool(config.instance_weight))


def start_of(config: Config, run: Folder | None) -> Start:
    """How training begins, from what the run has kept or from ``model.weights``; says which
    weights do not fit.

    Args:
        run: its folder, or None if it has kept nothing.

    Raises:
        UserError: weights that cannot be read or downloaded, or those of another architecture.
    """
    spec = spec_of(config)
    source = config.model.weights
    if source == "none":
        return Start(spec)
    if run is not None and run.exists(FILE):
        content = run.read(FILE)
        return Start(replace(spec, statistics=statistics_of(read_metadata(content))), content)
    if source == "pretrained":
        weights = published_weights(config.model.backbone)
    else:
        weights = _read(source, config)
    spec, content, fit = start_encoder(spec, weights, config.seed)
    origin = weights.source + (f", names after {fit.prefix}" if fit.prefix else "")
    mean, std = spec.statistics
    say(
        "weights",
        f"{origin}, {fit.loaded} tensors; images of {spec.image_size} px normalised by mean {mean} "
        f"std {std}",
    )
    for names, what in (
        (fit.missing, "are not in it and stay random"),
        (fit.unexpected, "are not used"),
    ):
        if names:
            warn(f"model.weights {source}: {len(names)} weights {what} ({listed(names)})")
    return Start(spec, content)


def _read(source: str, config: Config) -> Weights:
    """Weights of a file, or of the encoder of a run."""
    place, _, name = source.rstrip("/").rpartition("/")
    folder = Folder(place or ("/" if source.startswith("/") else "."), config.data.endpoint)
    if (folder / name).exists(ENCODER):
        folder, name = folder / name, ENCODER
    elif not folder.is_file(name):
        raise UserError(
            f"model.weights {source}: there is no such file and no run with {ENCODER}; it is none, "
            "pretrained, a file or the folder of a finished run"
        )
    return file_weights(folder.read(name), f"{folder.uri}/{name}", config.model.backbone)


def check_backbone(spec: EncoderSpec, layer_decay: float = 1.0) -> None:
    """Build the encoder and run it on two random images in training mode.

    Raises:
        UserError: an unknown backbone, one that does not take images of this size, features that
            are not finite, or a ``layer_decay`` for a backbone whose layers are not known.
    """
    size, name = spec.image_size, spec.model.backbone
    encoder = spec.build()
    if layer_decay < 1:
        layer_numbers(encoder.backbone)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        heads = encoder.train()(images)
    except Exception as error:  # a library's network may raise anything
        raise wrong_size(name, size, error) from error
    if not all(torch.isfinite(head).all() for head in heads):
        raise wrong_size(name, size, "its features are not finite")
