"""The layers of the package: a module imports only from its own folder and from those below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "wcl_ray"
# from bottom to top; two folders of one line know nothing of each other
LAYERS = (
    {""},  # the modules beside the folders: configuration, storage, terminal, errors
    {"data"},
    {"model", "kmeans"},
    {"clusters", "train", "export"},
    {"evaluate"},
    {"runs"},
    {"search"},
    {"report"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str:
    """Folder of a module; empty for those beside the folders."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / PACKAGE / parts[1]).is_dir() else ""


def wrong(source: str, target: str) -> bool:
    """Whether a module of one folder may not import one of another."""
    return source != target and RANK[target] >= RANK[source]


FACADE = ROOT / PACKAGE / "__init__.py"  # names what is for users, from wherever it is
FILES = sorted(path for path in (ROOT / PACKAGE).rglob("*.py") if path != FACADE)


def test_every_folder_has_a_layer() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders == set(RANK) - {""}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward_only(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    upward = [
        name
        for name in imports(path)
        if name.startswith(f"{PACKAGE}.") and wrong(layer(module), layer(name))
    ]
    assert not upward


def test_no_import_is_circular() -> None:
    """The modules can be put into an order in which each comes after what it imports."""
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    needs = {
        module: {
            target
            for name in imports(path)
            for target in (name, name.rpartition(".")[0])
            if target in known and target != module
        }
        for module, path in known.items()
    }
    while free := {module for module, targets in needs.items() if not targets}:
        needs = {m: targets - free for m, targets in needs.items() if m not in free}
    assert not needs


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path
