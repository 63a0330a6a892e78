"""YAML and JSON files whose scalars are texts: the option that a value is for says what it is."""

from __future__ import annotations

import json
from typing import Any

import yaml


class Empty(str):
    """The text of a plain ``null``, ``~`` or nothing: no value for options that may have none."""


class _Text(yaml.SafeLoader):
    """YAML whose scalars are texts, since the option says what they are: ``1:4`` is not 64, ``no``
    is not false and ``1.10`` keeps its last digit."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name!r} occurs twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _scalar(loader: Any, node: Any) -> str:
    text = loader.construct_scalar(node)
    return Empty(text) if node.tag.endswith(":null") else str(text)


_Text.yaml_implicit_resolvers = {
    letter: [(tag, test) for tag, test in tests if tag.endswith((":null", ":merge"))]
    for letter, tests in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in ("bool", "int", "float", "timestamp", "null", "merge"):  # also written out: !!int
    _Text.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def _unknown(loader: Any, node: Any) -> Any:
    kind = node.tag.rpartition(":")[2]
    raise yaml.constructor.ConstructorError(
        None, None, f"!!{kind} is not a value of an option; write a text or a list", node.start_mark
    )


for _tag in ("set", "omap", "pairs", "binary"):
    _Text.add_constructor(f"tag:yaml.org,2002:{_tag}", _unknown)


def load_texts(content: bytes) -> Any:
    """The content of a file: dicts and lists of texts.

    Raises:
        yaml.YAMLError: it is neither YAML nor JSON.
    """
    try:  # nearly YAML, but for letters beyond the first 65,536
        words = {True: "true", False: "false", None: Empty("null")}
        return _texts(
            json.loads(
                content,
                object_pairs_hook=_pairs,
                parse_int=str,
                parse_float=str,
                parse_constant=str,
            ),
            words,
        )
    except ValueError:
        return yaml.load(content, _Text)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):  # YAML's reader says which one
        raise ValueError("a key occurs twice")
    return tree


def _texts(value: Any, words: dict[Any, str]) -> Any:
    if isinstance(value, dict):
        return {key: _texts(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner, words) for inner in value]
    return value if isinstance(value, str) else words[value]
