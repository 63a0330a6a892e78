"""Reads a stored configuration (``config.json``), perhaps of an older version of this package.

- Options that are not stored take today's default.
- Renamed options are read under their current name.
- Stored options that no longer exist are ignored, with one warning that names them.
- Defaults may have changed. If the run is of an older version, an option at today's default counts
  as not given, and the stored value is kept, with one line that says so. Other values have to agree
  with the stored ones, and within one version all do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from packaging.version import InvalidVersion, Version

from wcl_ray import __version__
from wcl_ray.config import Config, from_dict, option_name
from wcl_ray.errors import UserError
from wcl_ray.renamed import renamed_tree
from wcl_ray.storage import Folder
from wcl_ray.terminal import say, warn
from wcl_ray.texts import flat

FILE = "config.json"
C = TypeVar("C", bound=Config)
# Options that may differ between the start of a run and its continuation.
_FREE = (
    "name", "resume", "start_or_resume", "storage", "compare", "scale.", "evaluate.every",
    "train.checkpoint_", "train.micro_batch_size", "concurrent", "data.endpoint",
    "plugins", "train.trackers",
)  # fmt: skip
# may differ if the images are the same
LOCATIONS = ("data.path", "data.eval_path", "data.table")


@dataclass(frozen=True)
class Stored:
    """The content of ``config.json``.

    Attributes:
        path: of the file.
        options: nested, exactly the options of this version.
        ignored: dotted names of stored options that this version does not have.
        images: count and hash of the ids of each side (see :mod:`wcl_ray.runs.moved`).
    """

    path: str
    version: str
    created: float
    options: dict[str, Any]
    ignored: tuple[str, ...]
    images: dict[str, dict[str, Any]]

    @property
    def older(self) -> bool:
        """Whether an older version wrote it."""
        try:
            return Version(self.version) < Version(__version__)
        except InvalidVersion:
            return False

    def config(self, cls: type[C]) -> C:
        """The configuration, with a warning of the options that are ignored.

        Raises:
            UserError: a value that this version does not accept.
        """
        self.warn_ignored()
        return self._build(self.options, cls)

    def warn_ignored(self) -> None:
        """Warn of stored options that this version does not have."""
        if self.ignored:
            names = ", ".join(map(option_name, self.ignored))
            warn(
                f"{self.path} is of version {self.version}; options that {__version__} does not "
                f"have are ignored: {names}"
            )

    def compare(self, config: Config) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
        """Stored values to keep, as the configuration has today's default, and conflicts: options
        that must agree but do not, dotted name → (stored, requested). An image size that is left
        to the weights is that of the run, whose source may be gone."""
        requested = config.to_dict()
        if not config.data.image_size:
            requested["data"]["image_size"] = self.options["data"]["image_size"]
        changed = differences(self.options, requested)
        default = flat(type(config)().to_dict())
        kept = {k: old for k, (old, new) in changed.items() if self.older and new == default[k]}
        return kept, {k: pair for k, pair in changed.items() if k not in kept}

    def apply(self, config: C, kept: dict[str, Any]) -> C:
        """The configuration with the stored image size, if it has none, and the stored values that
        are kept; prints the latter."""
        self.warn_ignored()
        if not kept and config.data.image_size:
            return config
        options = config.to_dict()
        if not config.data.image_size:
            options["data"]["image_size"] = self.options["data"]["image_size"]
        for name, value in kept.items():
            *sections, last = name.split(".")
            tree = options
            for section in sections:
                tree = tree[section]
            tree[last] = value
        if kept:
            text = ", ".join(f"{option_name(name)} {kept[name]!r}" for name in kept)
            say("resume", f"started by version {self.version}, whose values are kept: {text}")
        return self._build(options, type(config))

    def _build(self, options: dict[str, Any], cls: type[C]) -> C:
        try:
            config: C = from_dict(options, cls)
        except ValueError as error:
            raise UserError(
                f"{self.path} is of version {self.version}, and {__version__} does not accept it: "
                f"{error}"
            ) from None
        return config


def read_stored(folder: Folder, cls: type[Config] = Config) -> Stored:
    """The stored configuration of a run or search.

    Raises:
        UserError: not a run folder, or its ``config.json`` is damaged.
    """
    path = f"{folder.uri}/{FILE}"
    if not folder.exists(FILE):
        raise UserError(f"{folder.uri} is not a run folder: it has no {FILE}")
    try:
        content = json.loads(folder.read(FILE))
        options, ignored = _overlaid(cls().to_dict(), renamed_tree(content["config"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    return Stored(
        path=path,
        version=str(content.get("version", "0")),
        created=float(content.get("created", 0.0)),
        options=options,
        ignored=tuple(ignored),
        images=content.get("images", {}),
    )


def _overlaid(
    default: dict[str, Any], tree: dict[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The defaults overlaid with a stored tree, and the names in the tree that are unknown."""
    options, unknown = dict(default), []
    for key, value in tree.items():
        name = prefix + key
        if key not in default or isinstance(default[key], dict) != isinstance(value, dict):
            unknown += [] if value is None else [name]  # null had no effect
        elif isinstance(value, dict):
            options[key], inner = _overlaid(default[key], value, f"{name}.")
            unknown += inner
        else:
            options[key] = value
    return options, unknown


def differences(stored: dict[str, Any], requested: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that must agree but do not: dotted name → (stored, requested)."""
    old, new = flat(stored), flat(requested)
    names = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(_FREE)]
    return {k: (old.get(k), new.get(k)) for k in names if old.get(k) != new.get(k)}
