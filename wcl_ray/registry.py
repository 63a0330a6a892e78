"""Registries of the interchangeable parts of a run, one for each folder of parts.

A module ``NAME.py`` of the folder that contains ``@REGISTRY.add("NAME")`` is a part (its file has
underscores for dashes). It is imported
on first use, so that ``--help`` imports none. User modules (``--plugins``) add parts with the same
decorator; :func:`publish` sends these to all processes of the Ray job.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from wcl_ray.errors import UserError

T = TypeVar("T")
ROOT = Path(__file__).parent
_loaded: set[str] = set()  # values of --plugins


class Registry:
    """The parts that an option chooses from.

    Attributes:
        option: such as ``clusters.kind``.
        folder: of this package with its parts, such as ``clusters/kinds``.
        others: values of the option that are not parts.
        closed: the option accepts only these names.
        added: name → part, of the imported ones.
    """

    def __init__(
        self, option: str, folder: str, others: tuple[str, ...] = (), closed: bool = True
    ) -> None:
        self.option, self.folder, self.others, self.closed = option, folder, others, closed
        self.added: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # there is one in each process
        return _registry, (self.option,)

    @functools.cached_property
    def shipped(self) -> dict[str, str]:
        """Name → first paragraph of the module's docstring, for the parts of this package."""
        parts = {}
        for path in sorted((ROOT / self.folder).glob("*.py")):
            text, name = path.read_text(encoding="utf-8"), path.stem.replace("_", "-")
            if f'.add("{name}")' in text:
                parts[name] = _summary(text.split('"""')[1])
        return parts

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that adds a function or class under a name.

        Raises:
            UserError: the name is taken.
        """

        def register(part: T) -> T:
            module = getattr(part, "__module__", "")
            other = getattr(self.added.get(name), "__module__", module)
            if other != module or (name in self.shipped and module != self._module(name)):
                raise UserError(f"{self.option} {name!r} exists already; choose another name")
            self.added[name] = part
            return part

        return register

    def names(self) -> tuple[str, ...]:
        """All names; imports no part."""
        return tuple(dict.fromkeys([*self.shipped, *self.added]))

    def __contains__(self, name: str) -> bool:
        if name not in self.shipped and name not in self.added:
            fetch()
        return name in self.shipped or name in self.added

    def check(self, name: str) -> None:
        """Raise a UserError with all names and the nearest if the option does not accept a name."""
        if name in self.others or name in self:
            return
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "--plugins adds others"
        raise UserError(f"{self.option} {name!r} is none of {', '.join(self.names())}; {hint}")

    def get(self, name: str) -> Any:
        """The part with a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.added:
            self.check(name)
            if name in self.shipped:
                importlib.import_module(self._module(name))
        return self.added[name]

    def plugins(self) -> dict[str, Any]:
        """The parts that are not from this package."""
        return {name: part for name, part in self.added.items() if name not in self.shipped}

    def option_help(self, text: str) -> Any:
        """Argument of ``typing.Annotated`` that lists the names with their summaries in ``--help``.

        Args:
            text: describes the option.
        """
        import tyro

        summaries = self.shipped | {n: _summary(p.__doc__ or "") for n, p in self.plugins().items()}
        lines = [f"{name}: {summary}" for name, summary in summaries.items() if summary]
        names = ",".join([*self.others, *summaries])
        metavar = f"{{{names}}}" if self.closed else "NAME"
        return tyro.conf.arg(metavar=metavar, help="\n".join([text, *lines]))

    def _module(self, name: str) -> str:
        return ".".join([__package__, *self.folder.split("/"), name.replace("-", "_")])


FORMATS = Registry("data.format", "data/sources", others=("auto",))
KINDS = Registry("clusters.kind", "clusters/kinds")
LOSSES = Registry("loss.estimator", "model/losses")
BACKBONES = Registry("model.backbone", "model/backbones", closed=False)
TRACKERS = Registry("train.trackers", "train/trackers")
METHODS = Registry("method", "model/methods")
EXPORTS = Registry("to", "export")
REGISTRIES = {r.option: r for r in (FORMATS, KINDS, LOSSES, BACKBONES, TRACKERS, METHODS, EXPORTS)}


def _registry(option: str) -> Registry:
    return REGISTRIES[option]


def _summary(docstring: str) -> str:
    return docstring.strip().partition("\n\n")[0].replace("\n", " ")


def load_plugins(plugins: Iterable[str]) -> None:
    """Import user modules, each once.

    Args:
        plugins: names of modules, or paths of ``.py`` files. A name that cannot be imported is
            looked up in the working directory.

    Raises:
        UserError: a module does not exist or fails on import; with file and line.
    """
    for plugin in plugins:
        if plugin in _loaded:
            continue
        fetch()
        if plugin not in _loaded:
            _import(plugin)
            _loaded.add(plugin)


def _import(plugin: str) -> None:
    path = Path(plugin if plugin.endswith(".py") else plugin.replace(".", os.sep) + ".py")
    try:
        if not plugin.endswith(".py"):
            with contextlib.suppress(ModuleNotFoundError):
                if importlib.util.find_spec(plugin) is not None:
                    importlib.import_module(plugin)
                    return
        if not path.is_file():
            raise UserError(f"plugins: there is no module {plugin!r} and no file {path}")
        if path.stem in sys.modules:
            raise UserError(f"plugins: {path} has the name of another module; rename it")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
    except UserError:
        raise
    except Exception as error:  # user code raises anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"plugins {plugin} cannot be imported: {type(error).__name__}: {error} "
            f"({last.filename}, line {last.lineno})"
        ) from error


def publish() -> None:
    """Send the parts added by plugins to every process of this Ray job, also on nodes without their
    files: pickled by value, through Ray's key-value store."""
    fetch()
    parts = {option: registry.plugins() for option, registry in REGISTRIES.items()}
    if not any(parts.values()):
        return
    from ray import cloudpickle
    from ray.experimental import internal_kv

    for part in (part for named in parts.values() for part in named.values()):
        module = sys.modules.get(part.__module__)
        if isinstance(module, ModuleType) and part.__module__ != "__main__":
            cloudpickle.register_pickle_by_value(module)
    try:
        content = cloudpickle.dumps((parts, _loaded))
    except Exception as error:  # such as a part that holds a lock or an open file
        raise UserError(f"plugins cannot be sent to the workers: {error}") from error
    internal_kv._internal_kv_put(_key(), content)


def fetch() -> None:
    """Add the parts that the driver of this Ray job has published."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    from ray import cloudpickle
    from ray.experimental import internal_kv

    content = internal_kv._internal_kv_get(_key())
    if content is None:
        return
    parts, loaded = cloudpickle.loads(content)
    for option, named in parts.items():
        REGISTRIES[option].added = named | REGISTRIES[option].added
    _loaded.update(loaded)


def _key() -> bytes:
    import ray

    return f"wcl_ray:plugins:{ray.get_runtime_context().get_job_id()}".encode()
