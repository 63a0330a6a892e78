"""A finished run for other jobs: its options and its encoder, applied to any images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ray.data import Dataset

from wcl_ray.config import Config, DataConfig, ScaleConfig
from wcl_ray.data.images import SIDES, TEST
from wcl_ray.errors import UserError
from wcl_ray.evaluate.embed import embed, resources
from wcl_ray.runs.capacity import gpus
from wcl_ray.runs.folder import ENCODER, PROJECTOR
from wcl_ray.runs.moved import table_sides
from wcl_ray.runs.stored import read_stored
from wcl_ray.storage import Folder


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        config: options of the run.
        weights: content of ``encoder.safetensors``.
        table_sides: see :func:`wcl_ray.runs.moved.table_sides`.
    """

    folder: Folder
    config: Config
    weights: bytes = field(repr=False)
    table_sides: tuple[str, ...] = SIDES

    @staticmethod
    def open(run: str, endpoint: str | None = None) -> Trained:
        """Read a run folder.

        Raises:
            UserError: no run, or no trained encoder yet.
        """
        folder = Folder(run.rstrip("/"), endpoint)
        stored = read_stored(folder)
        if not folder.exists(ENCODER):
            raise UserError(f"{run} has no {ENCODER} yet: finish it with pretrain.py … --resume")
        sides = table_sides(stored.images)
        return Trained(folder, stored.config(Config), folder.read(ENCODER), sides)

    def projector(self) -> bytes:
        """Content of ``projector.safetensors``.

        Raises:
            UserError: the run is of a version that did not export it.
        """
        if not self.folder.exists(PROJECTOR):
            raise UserError(f"{self.folder.uri} has no {PROJECTOR}; use the backbone's features")
        return self.folder.read(PROJECTOR)

    def data(self, overrides: dict[str, Any]) -> DataConfig:
        """Data options of the run with some replaced (None: not replaced). Another path resets
        all options that describe the run's own source."""
        changed = {key: value for key, value in overrides.items() if value is not None}
        data = self.config.data
        if "path" in changed:
            names = ("path", "eval_path", "id", "image", "table", "key", "split_by", "encoding")
            unset = dict.fromkeys(names)
            data = replace(data, **unset, format="auto")  # type: ignore[arg-type]
        return replace(data, **changed)

    def find_tables(self, overrides: dict[str, Any]) -> tuple[str, ...]:
        """Sides at whose top a metadata table is looked for: those where the run had one, and those
        with other images than the run's."""
        if overrides.get("path") is not None:
            return SIDES
        other_test = overrides.get("eval_path") is not None
        return (*self.table_sides, TEST) if other_test else self.table_sides

    def embed(
        self,
        rows: Dataset,
        features: Literal["projector", "backbone"],
        scale: ScaleConfig,
        columns: tuple[str, ...] = (),
        pictures: bool = False,
    ) -> Dataset:
        """Features of images, see :func:`wcl_ray.evaluate.embed.embed`."""
        return embed(
            rows,
            self.weights,
            store_size=self.config.data.stored_size,
            columns=columns,
            **resources(gpus(scale)),
            projector=self.projector() if features == "projector" else None,
            pictures=pictures,
        )
