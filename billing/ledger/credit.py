"""The history of each customer's credit: append-only entries, of which the last one tells what there is.

Every entry keeps the customer's grants as they are after it (`billing/credit/account.py`), so that the balance is one
row however long the history, and the balance of any past instant another one. It is derived and never an updatable
number: `weir audit ledger` can replay the entries. They form a chain, numbered by `seq`: two writers that both read
entry n would both append n + 1, and the unique constraint refuses the second. `lock` makes them wait instead, and
`left_micro >= 0` is the database's own guard against overspending.

Burns are not written per request but when a lease is closed (`leases.py`); until then the lease's `used_pico` is the
burn in progress, and `credit_charges` names the requests (`charges.py`).
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from billing import ids
from billing.clock import Instant, instant_text
from billing.credit import account
from billing.credit.account import PRIORITY_DEFAULT, PRIORITY_MAX, Grant, Grants, Kind
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.ledger import audit, epoch, schema
from billing.limits import GRANT_PICO_MAX, GRANTS_LIVE_MAX
from billing.money import Pico, amount_text, format_amount, join, split

REASON_CHARS_MAX = 500
SETTLED_REASON = "pays what was taken back after it had been spent"

_ENTRIES = schema.credit_entries
_CUSTOMERS = schema.customers


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's credit after its entry number `seq` (0: none yet), which was written at `at`.

    `owed` was taken back (a refund, a dispute) after it had been spent: what is free next pays it (`settle`).
    """

    customer_id: str
    seq: int
    at: Instant
    currency: str | None
    grants: Grants
    owed: Pico


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of one grant; `grant_id` is its own id where credit was given, `left` what the grant has after it.

    `owed` is what the customer owes after it; an entry that only adds to that has the amount 0.
    """

    id: str
    seq: int
    at: Instant
    kind: Kind
    grant_id: str
    amount: Pico
    left: Pico
    currency: str
    priority: int
    expires_at: Instant | None
    lease_id: str | None
    source: str | None
    reason: str | None
    owed: Pico


def lock(conn: sa.Connection, customer_id: str) -> Account:
    """Return a customer's credit, which nobody else changes until this transaction ends. Raises NotFoundError.

    The lock is the customer's row (FOR NO KEY UPDATE: foreign keys to it are still checked). SQLite has one writer. It
    comes before any lock on leases and on rollups, in this order, everywhere.
    """
    query = sa.select(_CUSTOMERS.c.id).where(_CUSTOMERS.c.id == customer_id).with_for_update(key_share=True)
    if conn.execute(query).one_or_none() is None:
        raise NotFoundError(f"there is no customer {customer_id!r}; `weir customer list` shows all")
    return read(conn, customer_id)


def read(conn: sa.Connection, customer_id: str, at: int | None = None) -> Account:
    """Return a customer's credit now, or as it was after the last entry at or before an instant."""
    query = sa.select(_ENTRIES).where(_ENTRIES.c.customer_id == customer_id)
    if at is not None:
        query = query.where(_ENTRIES.c.at <= at)
    newest = query.order_by(_ENTRIES.c.seq.desc()).limit(1)
    row = conn.execute(newest.suffix_with("/* weir:credit.read */")).one_or_none()
    if row is None:
        return Account(customer_id, 0, Instant(0), None, (), Pico(0))
    owed = join(row.owed_micro, row.owed_pico)
    return Account(customer_id, row.seq, row.at, row.currency, account.from_text(row.grants), owed)


def grant(
    conn: sa.Connection,
    customer_id: str,
    amount: Pico,
    currency: str,
    at: Instant,
    actor: str,
    *,
    kind: Kind = Kind.GRANT,
    expires_at: Instant | None = None,
    priority: int = PRIORITY_DEFAULT,
    reason: str | None = None,
    source: str | None = None,
) -> Entry:
    """Give a customer credit and return its entry. `source` (a Checkout session) gives it once, however often it comes.

    Raises NotFoundError, UsageError for what can not be, RefusedError for another currency or too many grants (which
    a top-up may be: its money was taken).
    """
    _check(amount, currency, at, expires_at, priority, reason)
    if not read(conn, customer_id).grants:  # gateways do not know yet that there is credit to use
        epoch.advance(conn)
    before = lock(conn, customer_id)
    given = _of_source(conn, source)
    if given is not None:
        return given
    if before.currency not in (None, currency):
        raise RefusedError(f"this customer's credit is in {before.currency}; credit in {currency} can not join it")
    if kind is Kind.GRANT and len(before.grants) >= GRANTS_LIVE_MAX:
        raise RefusedError(f"this customer has {GRANTS_LIVE_MAX} credits that are not used up; more can not be given")
    burns_as = Kind.GRANT if kind is Kind.GRANT else Kind.TOPUP
    new = Grant(ids.new_id("credit"), burns_as, priority, expires_at, at, amount)
    after = write(conn, before, kind, new, amount, at, currency=currency, source=source, reason=reason)
    details = {
        "id": new.id,
        "amount": format_amount(amount, currency),
        "expires_at": None if expires_at is None else instant_text(expires_at),
        "reason": reason,
    }
    audit.record(conn, at=at, actor=actor, action=f"credit.{kind.value}", subject=customer_id, details=details)
    given = entries(conn, customer_id, 1)[0]
    settle(conn, after, at)
    return given


def _check(
    amount: Pico, currency: str, at: Instant, expires_at: Instant | None, priority: int, reason: str | None
) -> None:
    if not 0 < amount <= GRANT_PICO_MAX:
        most = amount_text(Pico(GRANT_PICO_MAX)).partition(".")[0]
        raise UsageError(f"{format_amount(amount, currency)} is not between 0 and {most} {currency}")
    if expires_at is not None and expires_at <= at:
        raise UsageError(f"the credit would expire at {instant_text(expires_at)}, which is past")
    if not 0 <= priority <= PRIORITY_MAX:
        raise UsageError(f"the priority {priority} is not between 0 (burns first) and {PRIORITY_MAX}")
    if reason is not None and not (len(reason) <= REASON_CHARS_MAX and reason.isprintable()):
        raise UsageError(f"the reason must be one line of at most {REASON_CHARS_MAX} characters")


def _of_source(conn: sa.Connection, source: str | None) -> Entry | None:
    if source is None:
        return None
    row = conn.execute(sa.select(_ENTRIES).where(_ENTRIES.c.source == source)).one_or_none()
    return None if row is None else _entry(row)


def end_grant(conn: sa.Connection, grant_id: str, kind: Kind, reason: str, at: Instant, actor: str) -> Pico:
    """Take back what is left of a grant and not leased; return how much that is.

    It is as if the grant expired now: what requests hold of it stays theirs, and lapses as they end. Raises
    NotFoundError.
    """
    found = conn.execute(sa.select(_ENTRIES).where(_ENTRIES.c.id == grant_id, _ENTRIES.c.grant_id == grant_id))
    row = found.one_or_none()
    if row is None:
        raise NotFoundError(f"there is no credit {grant_id!r}; `weir credit show CUSTOMER` lists them")
    before = lock(conn, row.customer_id)
    ended = next((held for held in before.grants if held.id == grant_id), None)
    if ended is None or ended.is_expired(at):
        return Pico(0)
    taken = Pico(ended.left - leased(conn, row.customer_id).get(grant_id, 0))
    write(conn, before, kind, ended._replace(expires_at=at), Pico(-taken), at, reason=reason)
    details = {"id": grant_id, "amount": format_amount(taken, row.currency), "reason": reason}
    audit.record(conn, at=at, actor=actor, action=f"credit.{kind.value}", subject=row.customer_id, details=details)
    return taken


def leased(conn: sa.Connection, customer_id: str) -> dict[str, int]:
    """Return what open leases hold of each of a customer's grants, used or not."""
    table = schema.leases
    query = sa.select(table.c.grant_id, table.c.amount_pico).where(
        table.c.customer_id == customer_id, table.c.closed_at.is_(None), table.c.grant_id.is_not(None)
    )
    held: dict[str, int] = {}
    for grant_id, amount in conn.execute(query):
        held[grant_id] = held.get(grant_id, 0) + amount
    return held


def expire(conn: sa.Connection, before: Account, at: int) -> Account:
    """Write off what has expired and is on no lease; the caller has locked the customer.

    The entry is dated at the expiry, though it may be written later: a balance of the past is then right.
    """
    if not any(held.is_expired(at) for held in before.grants):
        return before
    for lapsed, amount in account.lapsed(before.grants, leased(conn, before.customer_id), at):
        assert lapsed.expires_at is not None, "it has expired"
        before = write(conn, before, Kind.EXPIRY, lapsed, Pico(-amount), lapsed.expires_at)
    return before


def settle(conn: sa.Connection, before: Account, at: int) -> Account:
    """Pay what the customer owes from what is on no lease, in burn order; the caller has locked the customer."""
    if before.owed == 0:
        return before
    free = account.usable(before.grants, leased(conn, before.customer_id), at)
    for grant_id, amount in account.slices(free, before.owed):
        payer = next(held for held in before.grants if held.id == grant_id)
        owed = Pico(before.owed - amount)
        before = write(conn, before, Kind.ADJUSTMENT, payer, Pico(-amount), at, owed=owed, reason=SETTLED_REASON)
    return before


def write(
    conn: sa.Connection,
    before: Account,
    kind: Kind,
    changed: Grant,
    amount: Pico,
    at: int,
    *,
    currency: str | None = None,
    lease_id: str | None = None,
    source: str | None = None,
    reason: str | None = None,
    owed: Pico | None = None,
) -> Account:
    """Append an entry and return the account after it; the caller has locked the customer.

    `changed` is the grant before the change, or the new one (credit given: a positive amount of a grant that is not
    among the account's). `owed` None leaves what is owed as it is. Entries never go back in time: a clock that does,
    does not disorder the history.
    """
    is_new = amount > 0 and all(held.id != changed.id for held in before.grants)
    is_spent = amount == 0
    others = tuple(held for held in before.grants if held.id != changed.id)
    grants = account.ordered((*others, changed) if changed.left else others)
    left = changed.left
    if not is_new and not is_spent:
        grants, left = account.changed(grants, changed.id, amount)
    now_owed = before.owed if owed is None else owed
    known = currency or before.currency
    assert known is not None, "credit that changes was given before"
    after = Account(before.customer_id, before.seq + 1, Instant(max(at, before.at)), known, grants, now_owed)
    (amount_micro, amount_pico), (left_micro, left_pico) = split(amount), split(left)
    owed_micro, owed_pico = split(now_owed)
    row = {
        "id": changed.id if is_new else ids.new_id("credit"),
        "customer_id": before.customer_id,
        "seq": after.seq,
        "at": after.at,
        "kind": kind.value,
        "grant_id": changed.id,
        "amount_micro": amount_micro,
        "amount_pico": amount_pico,
        "left_micro": left_micro,
        "left_pico": left_pico,
        "currency": known,
        "priority": changed.priority,
        "expires_at": changed.expires_at,
        "lease_id": lease_id,
        "source": source,
        "reason": reason,
        "grants": account.to_text(grants),
        "owed_micro": owed_micro,
        "owed_pico": owed_pico,
    }
    conn.execute(sa.insert(_ENTRIES), row)
    return after


def entries(conn: sa.Connection, customer_id: str, rows_max: int) -> list[Entry]:
    """Return a customer's last entries, newest first."""
    query = sa.select(_ENTRIES).where(_ENTRIES.c.customer_id == customer_id)
    return [_entry(row) for row in conn.execute(query.order_by(_ENTRIES.c.seq.desc()).limit(rows_max))]


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        seq=row.seq,
        at=row.at,
        kind=Kind(row.kind),
        grant_id=row.grant_id,
        amount=join(row.amount_micro, row.amount_pico),
        left=join(row.left_micro, row.left_pico),
        currency=row.currency,
        priority=row.priority,
        expires_at=row.expires_at,
        lease_id=row.lease_id,
        source=row.source,
        reason=row.reason,
        owed=join(row.owed_micro, row.owed_pico),
    )
