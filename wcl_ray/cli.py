"""Command line and YAML files to :class:`wcl_ray.config.Config`.

A YAML file is turned into the flags it stands for, its values as texts, and put in front of the
command line, so both are checked by the same parser and flags win. Errors end the program with
status 2 and one message.
"""

from __future__ import annotations

import dataclasses
import difflib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
import yaml

from wcl_ray import stopping
from wcl_ray.config import Config, option_name
from wcl_ray.errors import TrainingError, find_user_error
from wcl_ray.registry import REGISTRIES, load_plugins
from wcl_ray.renamed import renamed, renamed_tree
from wcl_ray.terminal import escape_unencodable, warn
from wcl_ray.texts import Empty, load_texts

T = TypeVar("T")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
RUN_KEYS = (
    "name",
    "resume",
    "start_or_resume",
)  # of a stored configuration: they belong to that run alone


def parse(
    argv: Sequence[str] | None = None,
    cls: type[T] = Config,  # type: ignore[assignment]
    prog: str | None = None,
    implied: Callable[[list[str]], list[str]] = lambda words: [],
) -> T:
    """Read the options of a job.

    Args:
        argv: command line without the program's name; ``sys.argv[1:]`` by default. ``--config
            FILE`` may stand anywhere in it.
        cls: the dataclass to fill; its fields and their docstrings make the ``--help``.
        prog: name shown in the usage line.
        implied: flags that the given ones imply (weaker than any given one).

    Raises:
        SystemExit: status 2 and a message on an unknown key, a wrong type or a value out of range;
            status 0 after ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        words = _fold_open(_current(_expand(words, cls)), cls)
        _check_flags(words, cls)
        load_plugins(_values(words, "plugins"))  # what they add are values of options
        for registry in REGISTRIES.values():
            for name in _values(words, registry.option) if registry.closed else ():
                registry.check(name)
        words = _split_lists(implied(words) + words, cls)
        return tyro.cli(cls, args=words, prog=prog, description=_description(cls))
    except ValueError as error:
        fail(str(error))


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def run_job(body: Callable[[], Any]) -> None:
    """Run the body of a job: what the user can mend becomes one line, the rest a traceback.

    A run that was interrupted ends with status 130, one that was stopped by SIGTERM with 143, so
    that schedulers see it, within seconds and with the last resume hint (see
    :mod:`wcl_ray.stopping`).
    """
    escape_unencodable()
    with stopping.prompt_stop():
        try:
            body()
        except BaseException as error:
            stopped = stopping.received() or _signal_of(error)
            if stopped:
                stopping.report(stopped)
                raise SystemExit(128 + stopped) from None
            if not isinstance(error, Exception):
                raise
            found = find_user_error(error) or _limit_reached(error)
            told = (FileNotFoundError, PermissionError, TrainingError)
            if found is None and not isinstance(error, told):
                raise
            fail(str(found or error), 1)


def _limit_reached(error: Exception) -> Exception | None:
    if "ray" not in sys.modules:
        return None
    from wcl_ray.limits import limit_reached  # only here: --help stays fast

    return limit_reached(error)


def _signal_of(error: BaseException) -> int:
    """The signal that an exception stands for, 0 for others."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    # `ray job stop`, a scheduler
    stopped = isinstance(error, SystemExit) and error.code == signal.SIGTERM
    return signal.SIGTERM if stopped else 0


def _description(cls: type) -> str:
    return (
        f"{(cls.__doc__ or '').strip()}\n\n--config FILE reads any of these options from a YAML "
        "file (train: {epochs: 50}); flags win over it."
    )


def _expand(words: list[str], cls: type) -> list[str]:
    files: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            try:
                files.append(next(remaining))
            except StopIteration:
                raise ValueError("--config needs the name of a YAML file") from None
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    return [flag for name in files for flag in _read_yaml(name, cls)] + rest


def _read_yaml(name: str, cls: type) -> list[str]:
    from wcl_ray.storage import resolve_input  # only here: --help stays fast

    try:
        content = Path(resolve_input(name)).read_bytes()
    except OSError as error:
        raise ValueError(f"--config {name}: {error.strerror or error}") from None
    try:
        tree = load_texts(content)
    except yaml.YAMLError as error:
        raise ValueError(f"--config {name} is not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"--config {name} is nested too deeply") from None
    if isinstance(tree, Empty) or tree is None:
        return []
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else "text"
        raise ValueError(f"--config {name}: expected keys and values, found a {kind}")
    if isinstance(tree.get("config"), dict) and "version" in tree:  # config.json of a run folder
        options = {
            key: value for key, value in renamed_tree(tree["config"]).items() if key not in RUN_KEYS
        }
        flags = dict(_flatten(options, name))
        ignored = [key for key in flags if key not in keys(cls) and key not in open_sections(cls)]
        told = [key for key in ignored if not isinstance(flags[key], Empty)]
        if told:  # of another version, or of a search
            warn(f"{name} is of version {tree['version']}; left out: {', '.join(told)}")
        flags = {key: value for key, value in flags.items() if key not in ignored}
        return [word for key, value in flags.items() for word in _flag(key, value, cls, name)]
    return [word for key, value in _flatten(tree, name) for word in _flag(key, value, cls, name)]


def _flatten(tree: dict[Any, Any], name: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = prefix + option_name(str(key))
        if isinstance(value, dict):
            yield from _flatten(value, name, f"{path}.")
        else:
            yield _current_option(path, value)


def _current(words: list[str]) -> list[str]:
    """A command line with today's names of options that had others."""
    current: list[str] = []
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key, value = _current_option(key, value)
            current.append(f"--{key}{equals}{value}")
        else:
            current.append(_current_option(key, word)[1])
    return current


def _current_option(key: str, value: Any) -> tuple[str, Any]:
    """Today's name of an option, with dashes, and of its value."""
    option = key.replace("-", "_")
    name, current = renamed(option, value)
    if name == option:
        return key, current
    today = name.replace("_", "-")
    warn(f"--{key} is now called --{today}; the old name will go")
    return today, current


def _flag(key: str, value: Any, cls: type, name: str) -> list[str]:
    """The words of the command line that a key of a file stands for.

    Args:
        value: a text, or a list of them.
    """
    types = keys(cls)
    if key in open_sections(cls):  # as config.json keeps it: KEY=SPACE
        pairs = [str(text).partition("=") for text in (value if isinstance(value, list) else [])]
        return [word for inner, _, space in pairs for word in (f"--{key}.{inner}", space)]
    opened = key.split(".")[0] in open_sections(cls)
    if key not in types and any(name.startswith(f"{key}.") for name in types):
        if isinstance(value, Empty):
            return []
        raise ValueError(f"{name}: {key} is a section of options; it takes keys and values")
    if key not in types and not opened:
        raise ValueError(f"{name}: unknown key {key!r}{_nearest(key, types)}")
    kind = types.get(key, "")
    if isinstance(value, list):
        texts = [str(item) for item in value]
        return [f"--{key}", ",".join(texts)] if opened else [f"--{key}", *texts]
    if isinstance(value, Empty):
        if "None" in kind:
            return [f"--{key}=None"]
        if kind != "str" or value != "~":
            raise ValueError(f"{name}: {key} has no value; leave it out for the default")
    if kind == "bool":
        head, _, last = key.rpartition(".")
        given = BOOLEANS.get(value.lower())
        if given is None:
            raise ValueError(f"{name}: {key} is true or false, not {value!r}")
        return [f"--{key}"] if given else [f"--{head + '.' if head else ''}no-{last}"]
    if kind.startswith("tuple"):  # one of several
        return [f"--{key}", value]
    return [f"--{key}={value}"]


def keys(cls: type, prefix: str = "") -> dict[str, str]:
    """Every option of a configuration class: dotted name with dashes → its type as text."""
    found: dict[str, str] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = prefix + option_name(item)
        factory: Any = item.default_factory
        if isinstance(factory, type):  # a section
            found.update(keys(factory, f"{name}."))
        else:
            found[name] = str(item.type).replace("\n", "").removeprefix("Annotated[").strip()
    return found


def open_sections(cls: type) -> set[str]:
    """Options that take any key: ``--search.KEY VALUE`` is kept as ``KEY=VALUE`` in ``search``."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {item.name for item in fields if item.metadata.get("open")}


def _fold_open(words: list[str], cls: type) -> list[str]:
    """``--search.KEY A B`` as one ``--search KEY=A,B``; a later one of the same key wins."""
    found: dict[str, dict[str, list[str]]] = {name: {} for name in open_sections(cls)}
    rest: list[str] = []
    into: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            head, equals, value = word[2:].partition("=")
            section, dot, key = head.partition(".")
            into = None
            if section in found and not dot:
                raise ValueError(f"--{section} needs a key: --{section}.KEY VALUE")
            if section in found:
                into = found[section][key.replace("_", "-")] = [value] if equals else []
                continue
        if into is None:
            rest.append(word)
        else:
            into.append(word)
    for section, values in found.items():
        for key, parts in values.items():
            if not any(parts):
                raise ValueError(f"--{section}.{key} has no value")
        if values:
            rest += [f"--{section}", *(f"{key}={','.join(v)}" for key, v in values.items())]
    return rest


def _check_flags(words: list[str], cls: type) -> None:
    """Unknown flags by our own hand, so that the message is the same one as for a YAML key."""
    known = keys(cls)
    switches = {
        ".".join([*key.split(".")[:-1], "no-" + key.split(".")[-1]])
        for key, kind in known.items()
        if "bool" in kind
    }
    for word in words:
        if not word.startswith("--") or word in ("--", "--help"):
            continue
        key = word[2:].split("=")[0].replace("_", "-")
        if key not in known and key not in switches:
            raise ValueError(f"unknown option --{key}{_nearest(key, known, '--')}")


def _values(words: list[str], option: str) -> list[str]:
    """What is given for an option; of several times the last."""
    found: list[str] = []
    into = False
    for word in words:
        if word.startswith("--"):
            head, equals, value = word.partition("=")
            into = head[2:].replace("_", "-") == option
            if into:
                found = [value] if equals else []
        elif into:
            found.append(word)
    return found


def _split_lists(words: list[str], cls: type) -> list[str]:
    """``--clusters.k 100,1000`` as ``--clusters.k 100 1000``: options that take several numbers."""
    numbers = ("tuple[int", "tuple[float")
    several = {key for key, kind in keys(cls).items() if kind.startswith(numbers)}
    found: list[str] = []
    open_list = False
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            open_list = key.replace("_", "-") in several
            if open_list and equals and "," in value:
                found += [f"--{key}", *(part for part in value.split(",") if part)]
                continue
        elif open_list and "," in word:
            found += [part for part in word.split(",") if part]
            continue
        found.append(word)
    return found


def _nearest(key: str, known: dict[str, str], dashes: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # a right name in the wrong section
        last = key.split(".")[-1]
        near = [k for k in known if k.split(".")[-1] == last][:1]
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them all"
