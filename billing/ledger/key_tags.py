"""Tags of API keys, such as team=blue: what reports group by beyond customers and models.

A tag is the operator's word about a key, and never a client's about a request: nothing that is sent can move usage from
one group to another. Changing the tags of a key regroups its past, too; its usage stays what it was.
"""

import re
from collections.abc import Collection, Mapping

import sqlalchemy as sa

from billing.clock import Instant
from billing.errors import NotFoundError, UsageError
from billing.ledger import audit, schema

TAGS_PER_KEY_MAX = 20

_TAG = re.compile(r"([A-Za-z0-9_.-]{1,40})=([^\s=,]{1,80})")
_TAGS, _KEYS = schema.key_tags, schema.api_keys


def parse(texts: Collection[str]) -> dict[str, str]:
    """Read tags such as "team=blue". Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        match = _TAG.fullmatch(text)
        if match is None or not text.isprintable() or match[1] in found:
            raise UsageError(f"{text[:130]!r} is no tag; write NAME=VALUE such as team=blue, each name once")
        found[match[1]] = match[2]
    return found


def change(
    conn: sa.Connection, key_id: str, tags: Mapping[str, str], gone: Collection[str], at: Instant, actor: str
) -> None:
    """Give a key tags, and take others away. Raises NotFoundError for a name that it does not have, UsageError.

    The key's row is locked, so that no two changes at once exceed the limit.
    """
    conn.execute(sa.select(_KEYS.c.id).where(_KEYS.c.id == key_id).with_for_update()).one()
    held = of_key(conn, key_id)
    for name in gone:
        if name not in held:
            raise NotFoundError(f"the key has no tag {name!r}; its tags are {', '.join(held) or 'none'}")
    if len((held.keys() | tags.keys()) - set(gone)) > TAGS_PER_KEY_MAX:
        raise UsageError(f"a key has at most {TAGS_PER_KEY_MAX} tags")
    replaced = sa.and_(_TAGS.c.api_key_id == key_id, _TAGS.c.name.in_([*gone, *tags]))
    conn.execute(sa.delete(_TAGS).where(replaced))
    for name, value in tags.items():
        conn.execute(sa.insert(_TAGS).values(api_key_id=key_id, name=name, value=value))
    audit.record(
        conn, at=at, actor=actor, action="key.tags", subject=key_id, details={"set": dict(tags), "removed": list(gone)}
    )


def of_key(conn: sa.Connection, key_id: str) -> dict[str, str]:
    """Return a key's tags by their names, sorted."""
    rows = conn.execute(sa.select(_TAGS.c.name, _TAGS.c.value).where(_TAGS.c.api_key_id == key_id))
    return dict(sorted((row.name, row.value) for row in rows))


def of_all(conn: sa.Connection) -> dict[str, tuple[str, ...]]:
    """Return the tags of each key that has some, as texts such as "team=blue", sorted."""
    found: dict[str, list[str]] = {}
    for row in conn.execute(sa.select(_TAGS)):
        found.setdefault(row.api_key_id, []).append(f"{row.name}={row.value}")
    return {key_id: tuple(sorted(texts)) for key_id, texts in found.items()}
