"""A stored configuration (``config.json``) under today's options.

Runs outlive versions of this package:

- options that a stored configuration does not have take today's default;
- options that had another name then are read under today's;
- other options that it has and today's version does not are ignored, with one warning that names
  them;
- defaults may have changed: where a run is of an older version than today's, an option that stands
  at today's default counts as not given, and the stored value holds, with one line that says so.
  Another value than the default has to agree. Within one version all have to agree.
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

FILE = "config.json"
C = TypeVar("C", bound=Config)
# Options that may differ between the start of a run and its continuation.
_FREE = (
    "name", "resume", "start_or_resume", "storage", "compare", "scale.", "evaluate.every",
    "train.checkpoint_", "concurrent", "retries", "data.endpoint",
    "plugins", "train.trackers",
)  # fmt: skip
PLACES = ("data.path", "data.eval_path")  # may differ where the same images are there


@dataclass(frozen=True)
class Stored:
    """What ``config.json`` holds.

    Attributes:
        options: nested, all of today's and no others.
        ignored: dotted names of options that today's version does not know.
        images: what tells the images from others, by side (see :mod:`wcl_ray.runs.moved`).
    """

    where: str
    version: str
    created: float
    options: dict[str, Any]
    ignored: tuple[str, ...]
    images: dict[str, dict[str, Any]]

    @property
    def older(self) -> bool:
        """Whether it is of an older version than today's."""
        try:
            return Version(self.version) < Version(__version__)
        except InvalidVersion:
            return False

    def config(self, cls: type[C]) -> C:
        """As today's options, with a warning of those that are ignored.

        Raises:
            UserError: a value that today's version does not take.
        """
        self.warn_ignored()
        return self._build(self.options, cls)

    def warn_ignored(self) -> None:
        if self.ignored:
            names = ", ".join(map(option_name, self.ignored))
            warn(
                f"{self.where} is of version {self.version}; {__version__} does not know its "
                f"{names}, which it leaves out"
            )

    def compare(self, config: Config) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
        """Stored values that hold where the configuration has today's default, and options that
        must agree but do not: dotted name → (stored, wanted)."""
        found = differences(self.options, config.to_dict())
        default = flat(type(config)().to_dict())
        held = {k: old for k, (old, new) in found.items() if self.older and new == default[k]}
        return held, {k: pair for k, pair in found.items() if k not in held}

    def held_by(self, config: C, held: dict[str, Any]) -> C:
        """The configuration with the stored values that hold; says so."""
        self.warn_ignored()
        if not held:
            return config
        options = config.to_dict()
        for name, value in held.items():
            *sections, last = name.split(".")
            part = options
            for section in sections:
                part = part[section]
            part[last] = value
        text = ", ".join(f"{option_name(name)} {held[name]!r}" for name in held)
        say("resume", f"started by version {self.version}, whose values hold: {text}")
        return self._build(options, type(config))

    def _build(self, options: dict[str, Any], cls: type[C]) -> C:
        try:
            config: C = from_dict(options, cls)
        except ValueError as error:
            raise UserError(
                f"{self.where} is of version {self.version}, and {__version__} does not take it: "
                f"{error}"
            ) from None
        return config


def read_stored(folder: Folder, cls: type[Config] = Config) -> Stored:
    """The stored configuration of a run or search.

    Raises:
        UserError: the folder is no run, or its ``config.json`` is damaged.
    """
    where = f"{folder.uri}/{FILE}"
    if not folder.exists(FILE):
        raise UserError(f"{folder.uri} is no run folder: it has no {FILE}")
    try:
        content = json.loads(folder.read(FILE))
        options, ignored = _overlaid(cls().to_dict(), renamed_tree(content["config"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is damaged ({type(error).__name__}: {error})") from None
    return Stored(
        where=where,
        version=str(content.get("version", "0")),
        created=float(content.get("created", 0.0)),
        options=options,
        ignored=tuple(ignored),
        images=content.get("images", {}),
    )


def _overlaid(
    default: dict[str, Any], tree: dict[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The defaults with what a stored tree has of them, and the names of what else it has."""
    found, unknown = dict(default), []
    for key, value in tree.items():
        name = prefix + key
        if key not in default or isinstance(default[key], dict) != isinstance(value, dict):
            unknown += [] if value is None else [name]  # without a value it changed nothing
        elif isinstance(value, dict):
            found[key], inner = _overlaid(default[key], value, f"{name}.")
            unknown += inner
        else:
            found[key] = value
    return found, unknown


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that must agree but do not: dotted name → (stored, wanted)."""
    old, new = flat(stored), flat(wanted)
    names = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(_FREE)]
    return {k: (old.get(k), new.get(k)) for k in names if old.get(k) != new.get(k)}
