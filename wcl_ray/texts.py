"""Options as texts: from YAML and JSON, of which each option parses its own value; dotted names."""

from __future__ import annotations

import json
from typing import Any

import yaml


class Empty(str):
    """The text of a plain ``null``, ``None``, ``~`` or nothing: no value, for options that may be
    None."""


class _Text(yaml.SafeLoader):
    """YAML loader that keeps scalars as texts: ``1:4`` is not 64, ``no`` is not false, and ``1.10``
    keeps its last digit."""

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
    plain_none = node.style is None and text == "None"  # Python's null, unless it is quoted
    return Empty(text) if plain_none or node.tag.endswith(":null") else str(text)


_Text.yaml_implicit_resolvers = {
    letter: [(tag, test) for tag, test in tests if tag.endswith((":null", ":merge"))]
    for letter, tests in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# all but the first as explicit tags: !!int
for _tag in ("str", "bool", "int", "float", "timestamp", "null", "merge"):
    _Text.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def _reject(loader: Any, node: Any) -> Any:
    kind = node.tag.rpartition(":")[2]
    raise yaml.constructor.ConstructorError(
        None, None, f"!!{kind} is not a value of an option; write a text or a list", node.start_mark
    )


for _tag in ("set", "omap", "pairs", "binary"):
    _Text.add_constructor(f"tag:yaml.org,2002:{_tag}", _reject)


def load_texts(content: bytes) -> Any:
    """The content of a file as dicts and lists of texts.

    Raises:
        yaml.YAMLError: it is neither YAML nor JSON.
    """
    try:  # JSON is almost YAML, except for escaped characters beyond U+FFFF
        parse: dict[str, Any] = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)
        return _texts(json.loads(content, object_pairs_hook=unique_keys, **parse))
    except ValueError:
        return yaml.load(content, _Text)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object, for ``object_pairs_hook``.

    Raises:
        ValueError: a repeated key, of which Python would silently keep the last.
    """
    tree = dict(pairs)
    if len(tree) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return tree


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_texts(inner) for inner in value]
    words = {True: "true", False: "false", None: Empty("null")}
    return value if isinstance(value, str) else words[value]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted names.

    >>> flat({"loss": {"temperature": 0.2}, "seed": 0})
    {'loss.temperature': 0.2, 'seed': 0}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values
