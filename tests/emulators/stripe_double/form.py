"""Form bodies and query strings, decoded the way Stripe documents them: nested and indexed keys.

`items[0][price]=p&payload[value]=25&expand[]=data.customer` becomes nested dicts first. Only the schema can
tell whether digits in brackets are an index or a name (`metadata[1]=x` is a name), so lists, integers and
booleans are made in a second step, `coerce`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from .check import Schema
from .errors import invalid

_SEGMENTS = re.compile(r"\[([^\[\]]*)\]")
_KEY = re.compile(r"[^\[\]]+(\[[^\[\]]*\])*")
_INTEGER = re.compile(r"-?[0-9]+")


def decode(text: str) -> dict[str, Any]:
    """Nested dicts of strings. `a[]=x` appends under the next index. Raises ApiError 400 for a torn key."""
    tree: dict[str, Any] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        if not _KEY.fullmatch(key):
            raise invalid(f"Invalid parameter name: {key}", is_stored=False)
        head = key.split("[", 1)[0]
        _put(tree, [head, *_SEGMENTS.findall(key)], value, key)
    return tree


def _put(tree: dict[str, Any], segments: list[str], value: str, key: str) -> None:
    node = tree
    for segment in segments[:-1]:
        child = node.setdefault(segment or str(len(node)), {})
        if not isinstance(child, dict):
            raise invalid(f"Invalid parameter: {key} is both a value and a hash", param=key, is_stored=False)
        node = child
    node[segments[-1] or str(len(node))] = value


def coerce(schema: Schema, value: Any, schemas: Mapping[str, Schema]) -> Any:
    """The value with lists, integers and booleans where the schema wants them; what does not fit is left
    alone.

    The checker then names what was left alone, so nothing is guessed here.
    """
    if "$ref" in schema:
        return coerce(schemas[schema["$ref"].rsplit("/", 1)[1]], value, schemas)
    if "anyOf" in schema:
        return _coerce_union(schema["anyOf"], value, schemas)
    kind = schema.get("type")
    if isinstance(value, str):
        return _coerce_text(kind, value)
    if kind == "array" and isinstance(value, dict) and all(name.isdigit() for name in value):
        items = schema.get("items", {})
        return [coerce(items, value[name], schemas) for name in sorted(value, key=int)]
    if kind == "object" and isinstance(value, dict):
        fields = schema.get("properties", {})
        extra = schema.get("additionalProperties")
        other = extra if isinstance(extra, Mapping) else {}
        return {name: coerce(fields.get(name, other), element, schemas) for name, element in value.items()}
    return value


def _coerce_text(kind: str | None, text: str) -> Any:
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _coerce_union(alternatives: list[Schema], value: Any, schemas: Mapping[str, Schema]) -> Any:
    """The first alternative that changes or fits the value: lists before hashes, enums before integers."""
    if isinstance(value, str):
        if any(value in alternative.get("enum", ()) for alternative in alternatives):
            return value
        for alternative in alternatives:
            made = coerce(alternative, value, schemas)
            if not isinstance(made, str):
                return made
        return value
    wanted = "array" if all(name.isdigit() for name in value) else "object"
    for alternative in alternatives:
        if alternative.get("type") == wanted:
            return coerce(alternative, value, schemas)
    return value
