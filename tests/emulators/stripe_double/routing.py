"""Routes: which function answers which documented operation, and which parameters it really models.

A parameter that Stripe documents and the double does not model is refused and recorded, never ignored: a
client must not believe in an effect that did not happen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .account import Account, Json

LISTING = frozenset({"limit", "starting_after", "ending_before"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request, decoded and checked."""

    method: str
    path: str
    ids: tuple[str, ...]
    """The ids that stand in the path, in order."""
    parameters: Json = field(default_factory=dict)
    idempotency_key: str | None = None
    request_id: str = ""

    @property
    def id(self) -> str:
        """The id of the object that the path names."""
        return self.ids[0]


Handler = Callable[[Account, Call], Json]


@dataclass(frozen=True, slots=True)
class Route:
    """`template` is spelt as in Stripe's document; `models` are the parameters that the handler honours."""

    method: str
    template: str
    handler: Handler
    models: frozenset[str]

    @property
    def segments(self) -> tuple[str, ...]:
        """The template, cut at its slashes."""
        return tuple(self.template.strip("/").split("/"))


def route(method: str, template: str, handler: Handler, models: str = "") -> Route:
    """A route; `models` are names separated by blanks. Lists always page, everything may be expanded."""
    names = frozenset(models.split()) | {"expand"}
    return Route(method, template, handler, names | LISTING if method == "GET" else names)


class Router:
    """Finds the route of a path; a literal segment wins over a placeholder (`/invoices/search`)."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_shape: dict[tuple[str, int], list[Route]] = {}
        for one in sorted(routes, key=lambda each: each.template.count("{")):
            self._by_shape.setdefault((one.method, len(one.segments)), []).append(one)

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
        """The route and the ids in the path."""
        parts = tuple(path.strip("/").split("/"))
        for one in self._by_shape.get((method, len(parts)), ()):
            ids = _match(one.segments, parts)
            if ids is not None:
                return one, ids
        return None


def _match(segments: tuple[str, ...], parts: tuple[str, ...]) -> tuple[str, ...] | None:
    ids = []
    for segment, part in zip(segments, parts, strict=True):
        if segment.startswith("{"):
            ids.append(part)
        elif segment != part:
            return None
    return tuple(ids)
