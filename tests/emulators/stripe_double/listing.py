"""Lists, updates and expansions: what all of Stripe's v1 resources share.

Lists come newest first in pages of 1 to 100 (10 unless told), with `starting_after` and `ending_before`
cursors. `metadata` is merged key by key, and a key with an empty value is removed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from .account import Account, Json
from .errors import invalid
from .routing import Call

PAGE_DEFAULT = 10
PAGE_MAX = 100
EXPANDED_ONLY = frozenset({"tiers", "payments"})
"""Fields of prices and invoices that exist only when expanded."""


def page(call: Call, documents: Iterable[Json]) -> Json:
    """The list envelope for documents that are already newest first."""
    everything = list(documents)
    limit = call.parameters.get("limit", PAGE_DEFAULT)
    if not 1 <= limit <= PAGE_MAX:
        raise invalid(f"Limit must be between 1 and {PAGE_MAX}.", param="limit", is_stored=False)
    after, before = call.parameters.get("starting_after"), call.parameters.get("ending_before")
    if after is not None:
        everything = everything[_position(everything, after, "starting_after") + 1 :]
        chosen, has_more = everything[:limit], len(everything) > limit
    elif before is not None:
        everything = everything[: _position(everything, before, "ending_before")]
        chosen, has_more = everything[-limit:], len(everything) > limit
    else:
        chosen, has_more = everything[:limit], len(everything) > limit
    return {"object": "list", "data": chosen, "has_more": has_more, "url": call.path}


def _position(documents: list[Json], object_id: str, param: str) -> int:
    for number, document in enumerate(documents):
        if document["id"] == object_id:
            return number
    raise invalid(f"No such object: '{object_id}'", code="resource_missing", param=param)


def newest_first(account: Account, kind: str, call: Call) -> list[Json]:
    """Objects of a type, filtered by `created` when the call says so."""
    documents = reversed(account.all(kind))
    bounds = call.parameters.get("created")
    if bounds is None:
        return list(documents)
    return [document for document in documents if _is_within(document["created"], bounds)]


def _is_within(created: int, bounds: Any) -> bool:
    if isinstance(bounds, int):
        return created == bounds
    tests = {
        "gt": lambda limit: created > limit,
        "gte": lambda limit: created >= limit,
        "lt": lambda limit: created < limit,
        "lte": lambda limit: created <= limit,
    }
    return all(tests[name](limit) for name, limit in bounds.items())


def merge_metadata(current: Json, change: Any) -> Json:
    """Stripe's rule for updates: keys are merged, an empty value unsets its key, an empty string all."""
    if change == "":
        return {}
    merged = {**current, **(change or {})}
    return {key: value for key, value in merged.items() if value != ""}


def update(document: Json, call: Call, names: str) -> Json:
    """Sets the named fields that the call carries; gives their previous values, as events report them."""
    previous: Json = {}
    for name in names.split():
        if name not in call.parameters:
            continue
        value = call.parameters[name]
        if name == "metadata":
            value = merge_metadata(document["metadata"], value)
        elif value == "":
            value = None
        if document.get(name) != value:
            previous[name] = document.get(name)
            document[name] = value
    return previous


def expand(account: Account, document: Json, paths: Iterable[str]) -> Json:
    """A copy in which the ids at the given places are replaced by their objects. Raises 400 for a place
    without one.
    """
    expanded = copy.deepcopy(document)
    for path in paths:
        _expand_at(account, expanded, path.split("."), path)
    return expanded


def _expand_at(account: Account, node: Any, segments: list[str], path: str) -> None:
    if isinstance(node, list):
        for element in node:
            _expand_at(account, element, segments, path)
        return
    if node is None:
        return
    name = segments[0]
    if not isinstance(node, dict) or (name not in node and name not in EXPANDED_ONLY):
        raise invalid(f"This property cannot be expanded ({path}).", param="expand", is_stored=False)
    if name in EXPANDED_ONLY and name not in node:
        hidden = account.hidden.get(node["id"], {})
        if name in hidden:
            node[name] = copy.deepcopy(hidden[name])
        return
    if isinstance(node[name], str):
        node[name] = copy.deepcopy(account.find(node[name]) or account.deleted.get(node[name]) or node[name])
    if len(segments) > 1:
        _expand_at(account, node[name], segments[1:], path)
