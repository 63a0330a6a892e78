"""Options as given, on a command line or in a YAML file, and their checks before tyro parses them.

tyro draws a box around an error; here it is one line with the option, the value and what it takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from wcl_ray.config import option_name
from wcl_ray.renamed import REMOVED, renamed, renamed_tree
from wcl_ray.terminal import warn
from wcl_ray.texts import Empty, load_texts

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
TEXT = "\x1a"  # in front of a text that would be taken for a flag, or for no value
RUN_KEYS = ("name", "resume", "start_or_resume")  # stored options that hold for that run only


@dataclass(frozen=True, slots=True)
class Flag:
    """An option as given.

    Attributes:
        name: dotted, with dashes; ``train.no-compile`` turns off ``train.compile``.
        values: none for a switch.
    """

    name: str
    values: tuple[str, ...] = ()

    @property
    def switched(self) -> str:
        """The option that the flag turns off, if it is a switch."""
        head, dot, last = self.name.rpartition(".")
        return f"{head}{dot}{last.removeprefix('no-')}"


def read_words(words: Sequence[str]) -> list[Flag]:
    """Flags of a command line, renamed ones under their current names.

    Raises:
        ValueError: a value without an option.
    """
    flags: list[Flag] = []
    for word in words:
        if word in ("-h", "--help"):
            flags.append(Flag("help"))
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags.append(Flag(name.replace("_", "-"), (value,) if equals else ()))
        elif flags:
            flags[-1] = Flag(flags[-1].name, (*flags[-1].values, word))
        else:
            raise ValueError(f"unexpected {word!r}; options begin with --")
    return [_current(flag.name, flag.values) for flag in flags]


def read_yaml(name: str, cls: type) -> list[Flag]:
    """Flags of a YAML file, or of the ``config.json`` of a run folder.

    Raises:
        ValueError: the file cannot be read, or has unknown keys.
    """
    from wcl_ray.storage import resolve_input  # imported here to keep --help fast

    try:
        content = Path(resolve_input(name)).read_bytes()
    except OSError as error:
        raise ValueError(f"--config {name}: {error.strerror or error}") from None
    try:
        tree = load_texts(content)
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"--config {name} is not valid YAML: {text}") from None
    except RecursionError:
        raise ValueError(f"--config {name} is nested too deeply") from None
    if isinstance(tree, Empty) or tree is None:
        return []
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else "text"
        raise ValueError(f"--config {name}: expected keys and values, found a {kind}")
    if isinstance(tree.get("config"), dict) and "version" in tree:  # config.json of a run folder
        options = renamed_tree(tree["config"])
        given = dict(_flatten({k: v for k, v in options.items() if k not in RUN_KEYS}))
        ignored = {key for key in given if key not in keys(cls) and key not in open_sections(cls)}
        shown = [key for key in given if key in ignored and not isinstance(given[key], Empty)]
        if shown:  # options of another version, or of a search
            warn(f"{name} is of version {tree['version']}; left out: {', '.join(shown)}")
        given = {key: value for key, value in given.items() if key not in ignored}
    else:
        given = dict(_flatten(tree))
    return [flag for key, value in given.items() for flag in _of_file(key, value, cls, name)]


def _flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = prefix + option_name(str(key))
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}.")
        else:
            if isinstance(value, float):  # of renamed_tree; all others are texts
                value = str(value)
            listed = isinstance(value, list)
            flag = _current(path, tuple(value) if listed else (value,))
            yield flag.name, list(flag.values) if listed else flag.values[0]


def _current(name: str, values: tuple[Any, ...]) -> Flag:
    """A flag under the current names of the option and its values; warns if it was renamed."""
    option = name.replace("-", "_")
    current = renamed(option, "")[0]
    if current != option:
        new_name = current.replace("_", "-")
        warn(f"--{name} is now called --{new_name}; the old name will be removed")
        name = new_name
    return Flag(name, tuple(renamed(option, value)[1] for value in values))


def _of_file(key: str, value: Any, cls: type, file: str) -> list[Flag]:
    """The flags of a key of a file; ``value``: a text, or a list of texts."""
    known, opened = keys(cls), open_sections(cls)
    if key in opened and isinstance(value, list):  # config.json holds KEY=SPACE
        pairs = [str(text).partition("=") for text in value]
        return [Flag(f"{key}.{inner}", (space,)) for inner, _, space in pairs]
    if key in opened or (key not in known and any(name.startswith(f"{key}.") for name in known)):
        if isinstance(value, Empty):
            return []
        raise ValueError(f"{file}: {key} is a section of options; it takes keys and values")
    searched = key.split(".")[0] in opened
    if key not in known and not searched:
        raise ValueError(f"{file}: unknown key {key!r}{_nearest(key, known)}")
    kind = known.get(key)
    if isinstance(value, list):
        if typing.get_origin(kind) is not tuple and not searched:
            raise ValueError(f"{file}: {key} takes one value, not a list")
        return [Flag(key, tuple(map(str, value)))]
    if isinstance(value, Empty):
        if types.NoneType in typing.get_args(kind):
            return [Flag(key, ("None",))]
        if kind is not str or value != "~":
            raise ValueError(f"{file}: {key} has no value; leave it out for the default")
    if kind is bool:
        on = BOOLEANS.get(value.lower())
        if on is None:
            raise ValueError(f"{file}: {key} is true or false, not {value!r}")
        head, dot, last = key.rpartition(".")
        return [Flag(key if on else f"{head}{dot}no-{last}")]
    if value == "None" and _is_text(kind):
        value = TEXT + value
    return [Flag(key, (value,))]


@functools.cache
def keys(cls: type, prefix: str = "") -> dict[str, Any]:
    """Every option of a configuration class: dotted name with dashes → its type."""
    hints, options = typing.get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        name = prefix + option_name(item)
        factory: Any = item.default_factory
        if isinstance(factory, type):  # a section
            options.update(keys(factory, f"{name}."))
        else:
            options[name] = hints[item.name]
    return options


def open_sections(cls: type) -> set[str]:
    """Options that take any key; ``--search.KEY VALUE`` is stored as ``KEY=VALUE``."""
    return {item.name for item in dataclasses.fields(cls) if item.metadata.get("open")}


def fold_open(flags: list[Flag], cls: type) -> list[Flag]:
    """Turn ``--search.KEY A B`` into ``--search KEY=A,B``; the last one of a key wins."""
    sections: dict[str, dict[str, str]] = {name: {} for name in open_sections(cls)}
    rest = []
    for flag in flags:
        section, dot, key = flag.name.partition(".")
        if section not in sections:
            rest.append(flag)
        elif not dot:
            raise ValueError(f"--{section} needs a key: --{section}.KEY VALUE")
        elif not any(flag.values):
            raise ValueError(f"--{flag.name} has no value")
        else:
            sections[section][key] = ",".join(flag.values)
    for section, given in sections.items():
        if given:
            rest.append(Flag(section, tuple(f"{key}={text}" for key, text in given.items())))
    return rest


def check(flags: list[Flag], cls: type) -> None:
    """Check names and types.

    Raises:
        ValueError: an unknown option, one that is missing, or a value that it does not take.
    """
    known = keys(cls)
    names = {flag.name for flag in flags}
    if "help" in names:
        return
    for flag in flags:
        kind = known.get(flag.name, known.get(flag.switched))
        if kind is None or (flag.name not in known and kind is not bool):
            raise ValueError(f"unknown option --{flag.name}{_nearest(flag.name, known, '--')}")
        if kind is bool:
            if flag.values:
                raise ValueError(f"--{flag.name} takes no value, not {flag.values[0]!r}")
        elif typing.get_origin(kind) is not tuple and len(flag.values) != 1:
            several = f"takes one value, not {' '.join(flag.values)}"
            missing = f"needs a value (one that begins with --: --{flag.name}=VALUE)"
            raise ValueError(f"--{flag.name} {several if flag.values else missing}")
        for value in flag.values:
            wanted = _refused(value, kind)
            if wanted:
                raise ValueError(f"--{flag.name} is {value!r}; it takes {wanted}")
    for item in dataclasses.fields(cls):
        none = item.default is item.default_factory is dataclasses.MISSING
        if none and option_name(item) not in names:
            raise ValueError(f"--{option_name(item)} is missing; --help explains it")


def to_words(flags: list[Flag], cls: type) -> list[str]:
    """Checked flags as the words that tyro takes: lists of numbers without commas, texts that look
    like flags marked."""
    known, words = keys(cls), []
    for flag in flags:
        kind = known.get(flag.name)
        if typing.get_origin(kind) is tuple:
            words += [f"--{flag.name}", *_items(flag.values, kind)]
        else:
            words.append("=".join((f"--{flag.name}", *flag.values)))
    return words


def _items(values: Sequence[str], kind: Any) -> Iterator[str]:
    for value in values:
        if _is_text(typing.get_args(kind)[0]):
            yield TEXT + value if value.startswith("-") else value
        else:
            yield from filter(None, value.split(","))


def _is_text(kind: Any) -> bool:
    return kind is str or str in typing.get_args(kind)


def _refused(value: str, kind: Any) -> str | None:
    """What an option takes instead of a value, None if it takes the value."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        items = list(_items((value,), kind))
        refused = [_refused(item, parts[0]) for item in items]
        return next(filter(None, refused), None) if items else "numbers"
    if typing.get_origin(kind) is Literal:
        return None if value in parts else f"one of {', '.join(map(str, parts))}"
    if types.NoneType in parts:
        inner = next(part for part in parts if part is not types.NoneType)
        return None if value == "None" else _refused(value, inner)
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            return "a whole number" if kind is int else "a number"
    return None


def values_of(flags: list[Flag], name: str) -> tuple[str, ...]:
    """The values given for an option; the last occurrence wins."""
    return next((flag.values for flag in reversed(flags) if flag.name == name), ())


def _nearest(key: str, known: dict[str, Any], dashes: str = "") -> str:
    if key in REMOVED:
        return f"; {REMOVED[key][0]}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # perhaps the right name in the wrong section
        last = key.split(".")[-1]
        near = [k for k in known if k.split(".")[-1] == last][:1]
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them all"
