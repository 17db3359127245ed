"""OpenAPI 3.0 schemas compiled to plain functions, so that checking a request costs microseconds.

Covers exactly the keywords which Stripe's document uses in schemas: type, properties, required, enum, items,
anyOf, oneOf, additionalProperties, nullable, maxLength, pattern, $ref. Any other keyword stops the
compilation, so that a newer document can't weaken the check in silence. The general library (jsonschema)
takes milliseconds for one invoice and is used by the tests to confirm this one.

With `is_closed` an object that lists its properties refuses every other name, at any depth. The document
itself says so only for the top level of a request; real Stripe refuses unknown nested parameters too, and for
our own answers it catches a misspelt field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

Schema = Mapping[str, Any]
Checker = Callable[[Any, str, list[str]], None]

KNOWN_KEYWORDS = frozenset(
    [
        "type",
        "properties",
        "required",
        "enum",
        "items",
        "anyOf",
        "oneOf",
        "additionalProperties",
        "nullable",
        "maxLength",
        "pattern",
        "format",
        "title",
        "description",
        "$ref",
        "x-expandableFields",
        "x-expansionResources",
        "x-resourceId",
        "x-stripeBypassValidation",
        "x-stripeMostCommon",
        "x-stripeEvent",
        "x-stripeResource",
        "x-stripeOperations",
        "x-stripeError",
        "deprecated",
    ]
)
TYPE_TESTS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float, Decimal)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


class SchemaCompiler:
    """Compiles schemas of one document; named ones are compiled once, when first met."""

    def __init__(self, schemas: Mapping[str, Schema], *, is_closed: bool) -> None:
        self._schemas = schemas
        self._is_closed = is_closed
        self._named: dict[str, Checker] = {}

    def named(self, name: str) -> Checker:
        """The checker of `#/components/schemas/<name>`."""
        checker = self._named.get(name)
        if checker is None:
            checker = self._named[name] = self.compile(self._schemas[name])
        return checker

    def compile(self, schema: Schema) -> Checker:
        """A function that appends to its list one sentence per problem, each beginning with the place."""
        unknown = set(schema) - KNOWN_KEYWORDS
        if unknown:
            raise ValueError(f"the document uses schema keywords that this checker does not know: {sorted(unknown)}")
        core = self._core(schema)
        if not schema.get("nullable"):
            return core

        def nullable(value: Any, path: str, problems: list[str]) -> None:
            if value is not None:
                core(value, path, problems)

        return nullable

    def _core(self, schema: Schema) -> Checker:
        if "$ref" in schema:
            return self._reference(schema["$ref"].removeprefix("#/components/schemas/"))
        alternatives = schema.get("anyOf") or schema.get("oneOf")
        if alternatives:
            return self._union([self.compile(alternative) for alternative in alternatives])
        kind = schema.get("type")
        if kind is None:
            return lambda value, path, problems: None
        inner = {"object": self._object, "array": self._array}.get(kind, self._scalar)(schema)
        test = TYPE_TESTS[kind]

        def typed(value: Any, path: str, problems: list[str]) -> None:
            if test(value):
                inner(value, path, problems)
            else:
                problems.append(f"{path}: {value!r:.80} is not of type {kind}")

        return typed

    def _reference(self, name: str) -> Checker:
        """Resolved at the first use, because Stripe's objects refer to each other in circles."""

        def referenced(value: Any, path: str, problems: list[str]) -> None:
            self.named(name)(value, path, problems)

        return referenced

    @staticmethod
    def _union(alternatives: list[Checker]) -> Checker:
        if len(alternatives) == 1:
            return alternatives[0]

        def union(value: Any, path: str, problems: list[str]) -> None:
            best: list[str] | None = None
            for alternative in alternatives:
                found: list[str] = []
                alternative(value, path, found)
                if not found:
                    return
                if best is None or len(found) <= len(best):
                    best = found
            problems.extend(best or ())

        return union

    @staticmethod
    def _scalar(schema: Schema) -> Checker:
        enum = frozenset(schema["enum"]) if "enum" in schema else None
        length_max = schema.get("maxLength")
        pattern = re.compile(schema["pattern"]) if "pattern" in schema else None

        def scalar(value: Any, path: str, problems: list[str]) -> None:
            if enum is not None and value not in enum:
                problems.append(f"{path}: {value!r:.80} is not one of {sorted(map(str, enum))[:12]}")
            if length_max is not None and len(value) > length_max:
                problems.append(f"{path}: {len(value)} characters, at most {length_max} are allowed")
            if pattern is not None and not pattern.search(value):
                problems.append(f"{path}: {value!r:.80} does not match {pattern.pattern}")

        return scalar

    def _array(self, schema: Schema) -> Checker:
        item = self.compile(schema.get("items", {}))

        def array(value: Any, path: str, problems: list[str]) -> None:
            for number, element in enumerate(value):
                item(element, f"{path}[{number}]", problems)

        return array

    def _object(self, schema: Schema) -> Checker:
        fields = {name: self.compile(sub) for name, sub in schema.get("properties", {}).items()}
        required = tuple(schema.get("required", ()))
        extra = self._extra(schema)

        def check_object(value: Any, path: str, problems: list[str]) -> None:
            for name in required:
                if name not in value:
                    problems.append(f"{join(path, name)}: required, and missing")
            for name, element in value.items():
                (fields.get(name) or extra)(element, join(path, name), problems)

        return check_object

    def _extra(self, schema: Schema) -> Checker:
        """What becomes of a property that the schema does not list."""
        allowed = schema.get("additionalProperties")
        if isinstance(allowed, Mapping):
            return self.compile(allowed)
        is_free = allowed is True or not schema.get("properties")
        if allowed is None and (is_free or not self._is_closed):
            return lambda value, path, problems: None
        if allowed is True:
            return lambda value, path, problems: None
        return lambda value, path, problems: problems.append(f"{path}: unknown name")


def join(path: str, name: str) -> str:
    """The place of a property in Stripe's own notation: `recurring[meter]`."""
    return f"{path}[{name}]" if path else name
