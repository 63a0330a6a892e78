"""Parses the command line and YAML files to a :class:`wcl_ray.config.Config`.

A YAML file is translated to flags, which are put in front of the command line: one parser checks
both, and flags win. Errors end the program with status 2 and one message.
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
from wcl_ray.config import Config, OptionError, option_errors, option_name
from wcl_ray.errors import TrainingError, find_user_error
from wcl_ray.registry import METHODS, REGISTRIES, load_plugins
from wcl_ray.renamed import REMOVED, renamed, renamed_tree
from wcl_ray.terminal import escape_unencodable, warn
from wcl_ray.texts import Empty, load_texts

T = TypeVar("T")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
TEXT = "\x1a"  # in front of a text of a file that would be taken for a flag, or for no value
RUN_KEYS = ("name", "resume", "start_or_resume")  # stored options that hold for that run only


def parse(
    argv: Sequence[str] | None = None,
    cls: type[T] = Config,  # type: ignore[assignment]
    prog: str | None = None,
    implied: Callable[[list[str]], list[str]] = lambda words: [],
) -> T:
    """Read the options of a job.

    Args:
        argv: command line without the program's name; ``sys.argv[1:]`` by default. ``--config
            FILE`` may be anywhere in it.
        cls: dataclass of the options; its fields and their docstrings give ``--help``.
        prog: name shown in the usage line.
        implied: returns flags that the given ones imply; given flags win over them.

    Raises:
        SystemExit: status 2 and a message on an unknown key, a wrong type or a value out of range;
            status 0 after ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        words = _fold_open(_current(_expand(words, cls)), cls)
        _check_flags(words, cls)
        load_plugins(_values(words, "plugins"))  # they add values of options
        for registry in REGISTRIES.values():
            for name in _values(words, registry.option) if registry.closed else ():
                registry.check(name)
        _check_kind(words)
        words = _split_lists(implied(words) + words, cls)
        with option_errors():
            options = tyro.cli(cls, args=words, prog=prog, description=_description(cls))
        return _unmarked(options) if any(TEXT in word for word in words) else options
    except (ValueError, OptionError) as error:
        fail(str(error))


def _unmarked(value: Any) -> Any:
    """Options without the mark TEXT."""
    if isinstance(value, str):
        return value.removeprefix(TEXT)
    if isinstance(value, tuple):
        return tuple(map(_unmarked, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: _unmarked(getattr(value, n)) for n in names})
    return value


def fail(message: str, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def run_job(body: Callable[[], Any]) -> None:
    """Run the body of a job: errors that the user can fix become one line, others a traceback.

    A job that is interrupted ends within seconds with status 130, after SIGTERM with 143, and says
    what the same command will do (see :mod:`wcl_ray.stopping`).
    """
    escape_unencodable()
    with stopping.prompt_stop():
        try:
            body()
        except BaseException as error:
            number = stopping.received() or _signal_of(error)
            if number:
                stopping.report(number)
                raise SystemExit(128 + number) from None
            if not isinstance(error, Exception):
                raise
            user_error = find_user_error(error) or _limit_reached(error)
            clear = (FileNotFoundError, PermissionError, TrainingError)
            if user_error is None and not isinstance(error, clear):
                raise
            fail(str(user_error or error), 1)


def _limit_reached(error: Exception) -> Exception | None:
    if "ray" not in sys.modules:
        return None
    from wcl_ray.limits import limit_reached  # imported here to keep --help fast

    return limit_reached(error)


def _signal_of(error: BaseException) -> int:
    """The signal that raised an exception, 0 for other exceptions."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    # from `ray job stop` or a scheduler
    terminated = isinstance(error, SystemExit) and error.code == signal.SIGTERM
    return signal.SIGTERM if terminated else 0


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
    from wcl_ray.storage import resolve_input  # imported here to keep --help fast

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
        given = [key for key in ignored if not isinstance(flags[key], Empty)]
        if given:  # options of another version, or of a search
            warn(f"{name} is of version {tree['version']}; left out: {', '.join(given)}")
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
    """A command line with renamed options under their current names."""
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
    """The current names of an option, with dashes, and of its value; warns if it was renamed."""
    option = key.replace("-", "_")
    name, current = renamed(option, value)
    if name == option:
        return key, current
    new_key = name.replace("_", "-")
    warn(f"--{key} is now called --{new_key}; the old name will be removed")
    return new_key, current


def _flag(key: str, value: Any, cls: type, name: str) -> list[str]:
    """The words of the command line for a key of a file.

    Args:
        value: a text, or a list of texts.
        name: of the file.
    """
    types = keys(cls)
    if key in open_sections(cls):  # config.json holds KEY=SPACE
        pairs = [str(text).partition("=") for text in (value if isinstance(value, list) else [])]
        return [word for inner, _, space in pairs for word in (f"--{key}.{inner}", space)]
    is_open = key.split(".")[0] in open_sections(cls)
    if key not in types and any(name.startswith(f"{key}.") for name in types):
        if isinstance(value, Empty):
            return []
        raise ValueError(f"{name}: {key} is a section of options; it takes keys and values")
    if key not in types and not is_open:
        raise ValueError(f"{name}: unknown key {key!r}{_nearest(key, types)}")
    kind = types.get(key, "")
    is_texts = kind.startswith("tuple[str")
    if isinstance(value, list):
        texts = [_marked(str(item)) if is_texts else str(item) for item in value]
        return [f"--{key}", ",".join(texts)] if is_open else [f"--{key}", *texts]
    if isinstance(value, Empty):
        if "None" in kind:
            return [f"--{key}=None"]
        if kind != "str" or value != "~":
            raise ValueError(f"{name}: {key} has no value; leave it out for the default")
    if kind == "bool":
        head, _, last = key.rpartition(".")
        on = BOOLEANS.get(value.lower())
        if on is None:
            raise ValueError(f"{name}: {key} is true or false, not {value!r}")
        return [f"--{key}"] if on else [f"--{head + '.' if head else ''}no-{last}"]
    if kind.startswith("tuple"):  # a single value of an option that takes several
        return [f"--{key}", _marked(value) if is_texts else value]
    if value == "None" and kind.startswith("str"):
        value = TEXT + value
    return [f"--{key}={value}"]


def _marked(text: str) -> str:
    return TEXT + text if text.startswith("-") else text


def keys(cls: type, prefix: str = "") -> dict[str, str]:
    """Every option of a configuration class: dotted name with dashes → its type as text."""
    types: dict[str, str] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = prefix + option_name(item)
        factory: Any = item.default_factory
        if isinstance(factory, type):  # a section
            types.update(keys(factory, f"{name}."))
        else:
            types[name] = str(item.type).replace("\n", "").removeprefix("Annotated[").strip()
    return types


def open_sections(cls: type) -> set[str]:
    """Options that take any key; ``--search.KEY VALUE`` is stored as ``KEY=VALUE``."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {item.name for item in fields if item.metadata.get("open")}


def _fold_open(words: list[str], cls: type) -> list[str]:
    """Turn ``--search.KEY A B`` into ``--search KEY=A,B``; the last one of a key wins."""
    sections: dict[str, dict[str, list[str]]] = {name: {} for name in open_sections(cls)}
    rest: list[str] = []
    values: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            head, equals, value = word[2:].partition("=")
            section, dot, key = head.partition(".")
            values = None
            if section in sections and not dot:
                raise ValueError(f"--{section} needs a key: --{section}.KEY VALUE")
            if section in sections:
                values = sections[section][key.replace("_", "-")] = [value] if equals else []
                continue
        if values is None:
            rest.append(word)
        else:
            values.append(word)
    for section, keyed in sections.items():
        for key, given in keyed.items():
            if not any(given):
                raise ValueError(f"--{section}.{key} has no value")
        if keyed:
            rest += [f"--{section}", *(f"{key}={','.join(v)}" for key, v in keyed.items())]
    return rest


def _check_flags(words: list[str], cls: type) -> None:
    """Check for unknown flags before tyro, with the same message as for an unknown YAML key."""
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


def _check_kind(words: list[str]) -> None:
    """Raise a ValueError if the given kind of clusters is not that of the given method. The
    configuration cannot tell the default from a kind that is given."""
    for name, kind in zip(_values(words, "method"), _values(words, "clusters.kind"), strict=False):
        wanted = METHODS.get(name).kind if name != "cl-infonce" else None
        if wanted not in (None, kind):
            raise ValueError(
                f"method {name} has clusters of kind {wanted}, but clusters.kind is {kind}; leave "
                "it out"
            )


def _values(words: list[str], option: str) -> list[str]:
    """The values given for an option; the last occurrence wins."""
    values: list[str] = []
    inside = False
    for word in words:
        if word.startswith("--"):
            head, equals, value = word.partition("=")
            inside = head[2:].replace("_", "-") == option
            if inside:
                values = [value] if equals else []
        elif inside:
            values.append(word)
    return values


def _split_lists(words: list[str], cls: type) -> list[str]:
    """Turn ``--clusters.k 100,1000`` into ``--clusters.k 100 1000``, for lists of numbers."""
    numbers = ("tuple[int", "tuple[float")
    lists = {key for key, kind in keys(cls).items() if kind.startswith(numbers)}
    result: list[str] = []
    inside = False
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            inside = key.replace("_", "-") in lists
            if inside and equals and "," in value:
                result += [f"--{key}", *filter(None, value.split(","))]
                continue
        elif inside and "," in word:
            result += filter(None, word.split(","))
            continue
        result.append(word)
    return result


def _nearest(key: str, known: dict[str, str], dashes: str = "") -> str:
    if key in REMOVED:
        return f"; use {dashes}{REMOVED[key]}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # perhaps the right name in the wrong section
        last = key.split(".")[-1]
        near = [k for k in known if k.split(".")[-1] == last][:1]
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them all"
