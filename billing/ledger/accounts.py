"""Customers, why they are suspended, and their API keys.

Each change begins with `epoch.advance`, whose row lock makes changes follow one another: what a function
reads after it can not be stale by the time it writes, and every gateway looks again within a second. Each
change ends with its line in the audit log. Reads take no lock.

The causes of a suspension are independent of each other: a paid invoice lifts `unpaid` and leaves `manual`,
so that neither Stripe nor the admin can undo the other's decision by accident.
"""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant, instant_text
from billing.disconnect import CANCEL, Disconnect
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.ledger import audit, epoch, schema

NAME_CHARS_MAX = 200
EMAIL_CHARS_MAX = 254
KEY_LIMIT_MAX = 10**12
NEAREST_NAMES_MAX = 3

_ID_PREFIXES = ("cust_", "cus_", "key_", ids.KEY_PREFIX)
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")


class Cause(StrEnum):
    """Who suspended: the admin, an unpaid invoice, the customer's deletion at Stripe, a disputed payment."""

    MANUAL = "manual"
    UNPAID = "unpaid"
    STRIPE_DELETED = "stripe_deleted"
    DISPUTED = "disputed"


@dataclass(frozen=True, slots=True)
class Suspension:
    """One cause for which a customer is suspended; `reason` is what its clients are told."""

    cause: Cause
    reason: str
    since: Instant


@dataclass(frozen=True, slots=True)
class Customer:
    """Who pays; the billing period [period_start, period_end) is that of the Stripe subscription.

    A prepaid customer can use its credit and nothing beyond it.
    """

    id: str
    name: str
    email: str | None
    created_at: Instant
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    stripe_subscription_status: str | None
    period_start: Instant | None
    period_end: Instant | None
    past_due_since: Instant | None
    is_prepaid: bool
    suspensions: tuple[Suspension, ...]
    deleted_at: Instant | None = None
    paid_until: Instant | None = None
    rpm: int = 0
    tpm: int = 0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret; `models` None allows every model, and a limit of 0 is none of its own."""

    id: str
    customer_id: str
    name: str
    hint: str
    models: tuple[str, ...] | None
    rpm: int
    tpm: int
    concurrency: int
    created_at: Instant
    expires_at: Instant | None
    revoked_at: Instant | None
    on_disconnect: Disconnect


class Rate(NamedTuple):
    """Limits of a key, or of all keys of a customer together: requests and tokens per minute, requests at a time."""

    owner_id: str
    rpm: int
    tpm: int
    concurrency: int
    is_customers: bool


@dataclass(frozen=True, slots=True)
class Principal:
    """What a gateway has to know of a key and its customer; `suspension` is the reason if any cause holds.

    `purses` are what its requests are held on: a prepaid customer's credit, by the customer's id, and hard budgets;
    None if nothing is held, and no credit pays either. `has_credit`: what there is burns first, prepaid or not.
    `rates` are the limits that its requests fall under, None if there are none.
    """

    key_id: str
    customer_id: str
    customer_name: str
    models: frozenset[str] | None
    rpm: int
    tpm: int
    concurrency: int
    expires_at: Instant | None
    is_revoked: bool
    suspension: str | None
    period_start: Instant | None
    period_end: Instant | None
    is_prepaid: bool = False
    on_disconnect: Disconnect = CANCEL
    has_credit: bool = False
    purses: tuple[str, ...] | None = None
    rates: tuple[Rate, ...] | None = None


def add_customer(
    conn: sa.Connection, name: str, email: str | None, at: Instant, actor: str, *, is_prepaid: bool = False
) -> Customer:
    """Add a customer. Raises UsageError for what is no name or address, RefusedError for a name in use."""
    name = _checked_name(name)
    if email is not None:
        email = _checked_email(email)
    epoch.advance(conn)
    taken = conn.scalar(sa.select(schema.customers.c.id).where(schema.customers.c.name == name))
    if taken is not None:
        raise RefusedError(f"the customer {name!r} exists already ({taken}); choose another name")
    customer_id = ids.new_id("cust")
    row = {"id": customer_id, "name": name, "email": email, "created_at": at, "is_prepaid": int(is_prepaid)}
    conn.execute(sa.insert(schema.customers).values(row))
    details = {"name": name, "email": email} | ({"is_prepaid": True} if is_prepaid else {})
    audit.record(conn, at=at, actor=actor, action="customer.add", subject=customer_id, details=details)
    return get_customer(conn, customer_id)


def get_customer(conn: sa.Connection, customer_id: str) -> Customer:
    """Return the customer with this id. Raises NotFoundError."""
    found = _customers(conn, schema.customers.c.id == customer_id)
    if not found:
        raise NotFoundError(f"there is no customer {customer_id!r}; `weir customer list` shows all")
    return found[0]


def customer_names(conn: sa.Connection) -> dict[str, str]:
    """Return the name of every customer by its id."""
    return {row.id: row.name for row in conn.execute(sa.select(schema.customers.c.id, schema.customers.c.name))}


def find_customer(conn: sa.Connection, name_or_id: str) -> Customer:
    """Return the customer of this id or name. Raises NotFoundError, which names the nearest ones."""
    table = schema.customers
    found = _customers(conn, sa.or_(table.c.id == name_or_id, table.c.name == _normal(name_or_id)))
    if found:
        return found[0]
    names = {name.casefold(): name for name in conn.execute(sa.select(table.c.name)).scalars()}
    if not names:
        raise NotFoundError("there is no customer yet; `weir customer add NAME` makes one")
    nearest = difflib.get_close_matches(name_or_id.casefold(), names, n=NEAREST_NAMES_MAX)
    hint = "did you mean " + " or ".join(repr(names[name]) for name in nearest) if nearest else ""
    raise NotFoundError(f"there is no customer {name_or_id!r}; {hint or '`weir customer list` shows all'}")


def find_by_stripe(conn: sa.Connection, stripe_customer_id: str) -> Customer | None:
    """Return the customer that is linked to this customer of Stripe's, if any is."""
    found = _customers(conn, schema.customers.c.stripe_customer_id == stripe_customer_id)
    return found[0] if found else None


def list_customers(conn: sa.Connection) -> list[Customer]:
    """Return all customers, oldest first; all, because a list that silently ended would mislead."""
    return _customers(conn, sa.true())


def suspend(conn: sa.Connection, customer_id: str, cause: Cause, reason: str, at: Instant, actor: str) -> bool:
    """Suspend a customer for a cause; False if it holds already (its first reason and time stay)."""
    reason = _checked_text(reason, "the reason")
    epoch.advance(conn)
    if any(held.cause == cause for held in get_customer(conn, customer_id).suspensions):
        return False
    row = {"customer_id": customer_id, "cause": cause.value, "reason": reason, "since": at}
    conn.execute(sa.insert(schema.suspensions), row)
    details = {"cause": cause.value, "reason": reason}
    audit.record(conn, at=at, actor=actor, action="customer.suspend", subject=customer_id, details=details)
    return True


def resume(conn: sa.Connection, customer_id: str, cause: Cause, reason: str | None, at: Instant, actor: str) -> bool:
    """Lift one cause of suspension and no other; False if it did not hold."""
    epoch.advance(conn)
    table = schema.suspensions
    lifted = conn.execute(sa.delete(table).where(table.c.customer_id == customer_id, table.c.cause == cause.value))
    if lifted.rowcount == 0:
        return False
    details = {"cause": cause.value, "reason": reason}
    audit.record(conn, at=at, actor=actor, action="customer.resume", subject=customer_id, details=details)
    return True


def link_stripe(
    conn: sa.Connection,
    customer_id: str,
    stripe_customer_id: str,
    stripe_subscription_id: str | None,
    at: Instant,
    actor: str,
) -> None:
    """Say which customer of Stripe's pays for ours; a subscription that is None stays what it was.

    Raises RefusedError if either is linked to another: usage that waits to be sent would change its payer.
    """
    epoch.advance(conn)
    customer = get_customer(conn, customer_id)
    if customer.stripe_customer_id not in (None, stripe_customer_id):
        raise RefusedError(f"{customer.name!r} is linked to {customer.stripe_customer_id}; unlink it first")
    holder = find_by_stripe(conn, stripe_customer_id)
    if holder is not None and holder.id != customer_id:
        raise RefusedError(f"{stripe_customer_id} is linked to the customer {holder.name!r}")
    link = {"stripe_customer_id": stripe_customer_id}
    if stripe_subscription_id is not None:
        link["stripe_subscription_id"] = stripe_subscription_id
    _update_customer(conn, customer_id, "customer.link", link, at, actor)


def mark_deleted(conn: sa.Connection, customer_id: str, at: Instant, actor: str) -> None:
    """Say that a customer's account is closed; its rows stay, for they are the history of money."""
    epoch.advance(conn)
    if get_customer(conn, customer_id).deleted_at is None:
        _update_customer(conn, customer_id, "customer.delete", {"deleted_at": at}, at, actor)


def unlink(conn: sa.Connection, customer_id: str, at: Instant, actor: str) -> None:
    """Forget the customer's link to Stripe, and with it its subscription and billing period."""
    epoch.advance(conn)
    forgotten = (
        "stripe_customer_id",
        "stripe_subscription_id",
        "stripe_subscription_status",
        "period_start",
        "period_end",
        "past_due_since",
    )
    _update_customer(conn, customer_id, "customer.unlink", dict.fromkeys(forgotten), at, actor)


def set_subscription(
    conn: sa.Connection,
    customer_id: str,
    subscription_id: str,
    status: str,
    period_start: int | None,
    period_end: int | None,
    at: Instant,
    actor: str,
) -> bool:
    """Keep the state of the customer's subscription at Stripe; False if it is known already.

    When a period is over and no invoice is overdue, all before it is paid: the credit limit is for what came after.
    """
    epoch.advance(conn)
    before = get_customer(conn, customer_id)
    is_over = before.period_start is not None and period_start is not None and period_start > before.period_start
    state = {
        "stripe_subscription_id": subscription_id,
        "stripe_subscription_status": status,
        "period_start": period_start,
        "period_end": period_end,
        "paid_until": before.period_start if is_over and before.past_due_since is None else before.paid_until,
    }
    return _update_customer(conn, customer_id, "customer.subscription", state, at, actor)


def set_past_due_since(conn: sa.Connection, customer_id: str, since: int | None, at: Instant, actor: str) -> bool:
    """Keep since when an invoice is unpaid, or (None) that none is; False if it is known already."""
    epoch.advance(conn)
    return _update_customer(conn, customer_id, "customer.past_due", {"past_due_since": since}, at, actor)


def create_key(
    conn: sa.Connection,
    customer_id: str,
    name: str,
    models: Sequence[str] | None,
    rpm: int,
    tpm: int,
    concurrency: int,
    expires_at: Instant | None,
    at: Instant,
    actor: str,
    *,
    on_disconnect: Disconnect = CANCEL,
) -> tuple[ApiKey, str]:
    """Make a key, and return it with its secret, which is nowhere else: only its SHA-256 is stored.

    Raises UsageError for a name, model, limit or expiry that can not be, NotFoundError for the customer.
    """
    name = _checked_text(name, "the key's name")
    chosen = None if models is None else sorted({_checked_text(model, "the model") for model in models})
    if chosen == []:
        raise UsageError("a key without any model could do nothing; leave --models out to allow all")
    for limit in (rpm, tpm, concurrency):
        if not 0 <= limit <= KEY_LIMIT_MAX:
            raise UsageError(f"a limit of {limit} is not between 0 (none) and {KEY_LIMIT_MAX}")
    if expires_at is not None and expires_at <= at:
        raise UsageError(f"the key would expire at {instant_text(expires_at)}, which is past")
    epoch.advance(conn)
    get_customer(conn, customer_id)
    secret = ids.new_key()
    row = {
        "id": ids.new_id("key"),
        "customer_id": customer_id,
        "name": name,
        "secret_sha256": ids.key_hash(secret.encode()).hex(),
        "hint": f"{ids.KEY_PREFIX}…{secret[-4:]}",
        "models": None if chosen is None else json.dumps(chosen, ensure_ascii=False),
        "rpm": rpm,
        "tpm": tpm,
        "concurrency": concurrency,
        "created_at": at,
        "expires_at": expires_at,
        "revoked_at": None,
        "drain_tokens": on_disconnect.tokens_more,
    }
    conn.execute(sa.insert(schema.api_keys), row)
    details = {field: row[field] for field in row if field not in ("secret_sha256", "created_at", "revoked_at")}
    audit.record(conn, at=at, actor=actor, action="key.create", subject=str(row["id"]), details=details)
    return get_key(conn, str(row["id"])), secret


def list_keys(conn: sa.Connection, customer_id: str | None = None) -> list[ApiKey]:
    """Return all keys, or those of one customer, oldest first."""
    of_customer = schema.api_keys.c.customer_id == customer_id
    return _keys(conn, sa.true() if customer_id is None else of_customer)


def revoke_key(conn: sa.Connection, key_id: str, at: Instant, actor: str) -> ApiKey:
    """Revoke a key for good and return it; one already revoked stays as it is. Raises NotFoundError."""
    if key_id.startswith(ids.KEY_PREFIX):
        raise UsageError("that is a key itself; name it by its id, which `weir key list` shows")
    epoch.advance(conn)
    found = get_key(conn, key_id)
    if found.revoked_at is not None:
        return found
    conn.execute(sa.update(schema.api_keys).where(schema.api_keys.c.id == key_id).values(revoked_at=at))
    details = {"customer_id": found.customer_id, "hint": found.hint}
    audit.record(conn, at=at, actor=actor, action="key.revoke", subject=key_id, details=details)
    return get_key(conn, key_id)


def get_key(conn: sa.Connection, key_id: str) -> ApiKey:
    """Return the key with this id. Raises NotFoundError."""
    found = _keys(conn, schema.api_keys.c.id == key_id)
    if not found:
        raise NotFoundError(f"there is no key {key_id!r}; `weir key list` shows all")
    return found[0]


def usable_secrets(conn: sa.Connection, rows_max: int) -> list[str]:
    """Return the SHA-256 of keys that are not revoked, newest first, in hex."""
    keys = schema.api_keys
    query = sa.select(keys.c.secret_sha256).where(keys.c.revoked_at.is_(None)).order_by(keys.c.id.desc())
    return list(conn.execute(query.limit(rows_max)).scalars())


def _checked_name(text: str) -> str:
    name = _checked_text(text, "the name")
    if name.startswith(_ID_PREFIXES):
        raise UsageError(f"the name must not begin with {', '.join(_ID_PREFIXES)}: so begin ids and keys")
    return name


def _checked_text(text: str, what: str) -> str:
    """Return a text for people in its normal form (NFC). Raises UsageError, which calls it `what`."""
    normal = _normal(text)
    if not 1 <= len(normal) <= NAME_CHARS_MAX:
        raise UsageError(f"{what} must have 1 to {NAME_CHARS_MAX} characters")
    if any(unicodedata.category(character) in _INVISIBLE for character in normal):
        raise UsageError(f"{what} {normal!r} has a control or invisible character")
    return normal


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _checked_email(text: str) -> str:
    email = text.strip()
    if len(email) > EMAIL_CHARS_MAX or not email.isprintable() or _EMAIL.fullmatch(email) is None:
        raise UsageError(f"{email[:EMAIL_CHARS_MAX]!r} is no e-mail address")
    return email


def _update_customer(
    conn: sa.Connection, customer_id: str, action: str, values: dict[str, Any], at: Instant, actor: str
) -> bool:
    """Write what differs, and its audit line; False if nothing does. The caller has advanced the epoch."""
    before = get_customer(conn, customer_id)
    if all(getattr(before, name) == value for name, value in values.items()):
        return False
    conn.execute(sa.update(schema.customers).where(schema.customers.c.id == customer_id).values(values))
    audit.record(conn, at=at, actor=actor, action=action, subject=customer_id, details=values)
    return True


def _customers(conn: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Customer]:
    table, suspensions = schema.customers, schema.suspensions
    rows = conn.execute(sa.select(table).where(condition).order_by(table.c.created_at, table.c.id)).all()
    causes: dict[str, list[Suspension]] = {row.id: [] for row in rows}
    held = sa.select(suspensions).join(table, table.c.id == suspensions.c.customer_id).where(condition)
    for row in conn.execute(held.order_by(suspensions.c.since, suspensions.c.cause)):
        causes[row.customer_id].append(Suspension(Cause(row.cause), row.reason, row.since))
    return [_customer(row, causes[row.id]) for row in rows]


def _customer(row: sa.Row[Any], suspensions: Iterable[Suspension]) -> Customer:
    return Customer(
        id=row.id,
        name=row.name,
        email=row.email,
        created_at=row.created_at,
        stripe_customer_id=row.stripe_customer_id,
        stripe_subscription_id=row.stripe_subscription_id,
        stripe_subscription_status=row.stripe_subscription_status,
        period_start=row.period_start,
        period_end=row.period_end,
        past_due_since=row.past_due_since,
        is_prepaid=bool(row.is_prepaid),
        suspensions=tuple(suspensions),
        deleted_at=row.deleted_at,
        paid_until=row.paid_until,
        rpm=row.rpm,
        tpm=row.tpm,
        concurrency=row.concurrency,
    )


def _keys(conn: sa.Connection, condition: sa.ColumnElement[bool]) -> list[ApiKey]:
    table = schema.api_keys
    rows = conn.execute(sa.select(table).where(condition).order_by(table.c.created_at, table.c.id))
    return [
        ApiKey(
            id=row.id,
            customer_id=row.customer_id,
            name=row.name,
            hint=row.hint,
            models=None if row.models is None else tuple(json.loads(row.models)),
            rpm=row.rpm,
            tpm=row.tpm,
            concurrency=row.concurrency,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            on_disconnect=Disconnect(row.drain_tokens),
        )
        for row in rows
    ]
