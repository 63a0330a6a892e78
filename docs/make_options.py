"""Write the reference of all options:  python docs/make_options.py > docs/options.md"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).parent.parent))
from jobs.cluster import ClusterJob
from jobs.embed import EmbedJob
from jobs.evaluate import EvaluateJob
from jobs.export import ExportJob
from jobs.neighbours import NeighboursJob
from jobs.prepare import PrepareJob
from jobs.report import ReportJob
from wcl_ray.config import Config
from wcl_ray.search.options import SearchConfig

HEAD = """# Options

Generated from the configuration classes; do not edit. Every option can be given on the command line
(`--train.epochs 50`) or in the file of `--config` (`train: {epochs: 50}`); flags win over the file.
`--help` prints the same texts. Several values are separated by spaces, numbers also by commas. What
is on or off is written `--train.compile` or `--train.no-compile`."""


def help_texts(cls: type) -> dict[str, str]:
    """Name → help of the fields that a class itself declares: the docstring, or that of tyro."""
    [body] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(body, ast.ClassDef)
    names = [getattr(getattr(node, "target", None), "id", "") for node in body.body]
    docs = [getattr(getattr(node, "value", None), "value", "") for node in body.body[1:]] + [""]
    pairs = zip(names, docs, strict=True)
    texts = {name: " ".join(doc.split()) for name, doc in pairs if isinstance(doc, str) and name}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        given = [getattr(part, "help", None) for part in getattr(hint, "__metadata__", ())]
        for text in filter(None, given if name in names else []):
            texts[name] = " ".join(line.removesuffix(".") + "." for line in text.splitlines())
    return texts


def default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, bool):
        return "on" if value else "off"
    texts = map(str, value) if isinstance(value, tuple) else [] if value is None else [str(value)]
    return " ".join(f"`{text}`" for text in texts) or "none"


def section(cls: type, title: str, prefix: str = "") -> Iterator[str]:
    """Heading, summary and table of the options of a class, then its sections."""
    yield from ("", title, "", str(cls.__doc__).strip().splitlines()[0], "")
    texts = help_texts(cls)
    fields = [field for field in dataclasses.fields(cls) if field.name in texts]
    plain = [field for field in fields if not isinstance(field.default_factory, type)]
    yield from ("| option | default | meaning |", "|---|---|---|") if plain else ()
    for field in plain:
        name, text = field.name.strip("_").replace("_", "-"), texts[field.name].replace("|", "\\|")
        yield f"| `--{prefix}{name}` | {default(field)} | {text} |"
    for field in (field for field in fields if field not in plain):
        yield from section(
            field.default_factory, f"### `--{prefix}{field.name}`", f"{prefix}{field.name}."
        )  # type: ignore[arg-type]


def main() -> None:
    print(HEAD)
    for cls, job in (
        (Config, "pretrain"),
        (SearchConfig, "tune"),
        (ClusterJob, "cluster"),
        (PrepareJob, "prepare"),
        (EmbedJob, "embed"),
        (EvaluateJob, "evaluate"),
        (ReportJob, "report"),
        (ExportJob, "export"),
        (NeighboursJob, "neighbours"),
    ):
        print(*section(cls, f"## jobs/{job}.py"), sep="\n")
        if job in ("tune", "cluster", "prepare"):
            print("\nIt also takes the options of jobs/pretrain.py.")
        if job == "evaluate":
            print("\nIt also takes the `--scale` options of jobs/pretrain.py.")


if __name__ == "__main__":
    main()
