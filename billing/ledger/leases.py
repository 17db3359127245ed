"""Leases: slices of one grant or budget each that a worker holds, so that it admits requests without asking the ledger.

A lease is taken under the customer's lock (`credit.lock`) from what is free: what its grant has left, less what all
open leases hold; or what its budget has left in the present period (`budgets.py`). So the open leases of all workers
and hosts together never hold more than there is, and a request that is admitted on one can not be overspent by another.
What is used grows with the events, in their transaction (`charges.py`). A lease that its holder stops renewing is
closed by whoever comes next, `GRACE_US` after it ran out: what was used of a grant becomes a burn, the rest is free
again. So `kill -9` costs nobody anything, and takes nothing away for long.

Whoever needs more than is free asks the other holders to give back what they do not use (`recalled_at`); they look
twice a second.

Instants are the database's where it has a clock of its own (`database_now`), so that a host whose clock is wrong does
not close the others' leases. No safety depends on clocks: an event whose lease was closed is paid from what is free.

Locks: the customer first, then all its open leases in the order of their ids, as the recorder of each holder takes
them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing import ids
from billing.clock import HOUR_US, SECOND_US, Clock, Instant
from billing.credit import account, budget
from billing.credit.account import BurnOrder, Kind
from billing.credit.budget import customer_of, is_budget
from billing.credit.holds import Part
from billing.ledger import budgets, credit, schema
from billing.ledger.credit import Account
from billing.limits import LEASE_PICO_MAX
from billing.money import Pico

LEASE_US = 60 * SECOND_US
"""How long a lease holds after it was taken or renewed: what a dead worker keeps from the others."""

GRACE_US = 30 * SECOND_US
"""How long after that it is left alone: what was admitted at its end may wait 10 s for its commit."""

LEASE_AGE_US = HOUR_US
"""After that a lease grows no more but is followed by another, so that each hour has its burns."""

RECALL_US = 2 * SECOND_US
"""How long an unanswered recall is waited for, and an answered one is not repeated."""

SETTLED = "settled"
"""The holder of leases that were closed as they were made: late usage."""

_UTC = ZoneInfo("UTC")
_LEASES = schema.leases
_IS_OPEN = _LEASES.c.closed_at.is_(None)


@dataclass(frozen=True, slots=True)
class Lease:
    """One row of `leases`, in the order of its columns."""

    id: str
    customer_id: str
    grant_id: str | None
    holder: str
    amount_pico: int
    used_pico: int
    taken_at: Instant
    valid_until: Instant
    recalled_at: Instant | None
    answered_at: Instant | None
    closed_at: Instant | None
    budget_id: str | None

    @property
    def source_id(self) -> str:
        """What it is a slice of: a grant or a budget."""
        return self.grant_id or self.budget_id or ""

    def is_of(self, purse_id: str) -> bool:
        """Tell whether it is of this budget, or of this customer's credit."""
        return self.budget_id == (purse_id if is_budget(purse_id) else None)


class Addition(NamedTuple):
    """What was added to one lease of the holder's, new or not; what it holds burns in this order, until the expiry."""

    lease_id: str
    amount: Pico
    order: BurnOrder
    expires_at: Instant | None


class Standing(NamedTuple):
    """A customer's credit: the balance, the part of it that leases hold unused, and what is free.

    The balance is negative where more was taken back than was left. Of a budget, it is what is left of it until
    `until`, and `limit` what it allows in all.
    """

    currency: str | None
    balance: Pico
    held: Pico
    limit: Pico | None = None
    until: Instant | None = None

    @property
    def available(self) -> Pico:
        """What is on no lease."""
        return Pico(self.balance - self.held)


class Taken(NamedTuple):
    """What `take` came to: additions of at least what was needed, or all there was, and how things stand then.

    `is_recalling`: other holders were asked to give back what they do not use, so that a retry may bring more.
    """

    additions: tuple[Addition, ...]
    standing: Standing
    is_recalling: bool


def database_now(conn: sa.Connection, now: Clock) -> Instant:
    """Return the database server's time; SQLite is on this host and has this host's."""
    if conn.dialect.name != "postgresql":
        return now()
    return Instant(conn.execute(_SERVER_NOW).scalar_one())


_SERVER_NOW = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")


class _Source(NamedTuple):
    """Something to lease from, and what of it is free."""

    id: str
    free: Pico
    order: BurnOrder
    expires_at: Instant | None


def take(
    conn: sa.Connection,
    purse_id: str,
    holder: str,
    currency: str,
    need: int,
    wished: int,
    at: Instant,
    zone: ZoneInfo = _UTC,
) -> Taken:
    """Lease what is needed, or all that there is, and what is wished as far as others can spare it.

    The purse is a customer's credit or a budget, whose days are those of the zone. Sweeps the customer's dead leases
    and expired grants on the way. Raises NotFoundError.
    """
    customer_id = customer_of(purse_id)
    before, open_ = _swept(conn, customer_id, at)
    held = [lease for lease in open_ if lease.is_of(purse_id)]
    sources = _budget(conn, purse_id, zone, at) if is_budget(purse_id) else _grants(before, held, currency, at)
    size = account.lease_size(sum(source.free for source in sources), need, wished)
    cut = dict(account.slices([(source.id, source.free) for source in sources], size))
    additions = []
    for source in sources:
        if source.id in cut:
            own = [lease for lease in held if lease.holder == holder and lease.source_id == source.id]
            amount = cut[source.id]
            lease_id = _grow(conn, own, amount, at) or _make(conn, customer_id, source.id, holder, amount, at)
            additions.append(Addition(lease_id, amount, source.order, source.expires_at))
    is_short = need > sum(cut.values())
    is_recalling = is_short and _recall(conn, [lease for lease in held if lease.holder != holder], at)
    if is_budget(purse_id):
        return Taken(tuple(additions), budget_standing(conn, purse_id, zone, at), is_recalling)
    now_open = [lease for lease in open_leases(conn, customer_id) if lease.is_of(purse_id)]
    return Taken(tuple(additions), _standing(before, now_open, at), is_recalling)


def _grants(before: Account, held: Sequence[Lease], currency: str, at: Instant) -> list[_Source]:
    """What is free of the customer's credit, in burn order; nothing in another currency."""
    free = account.usable(before.grants, _by_source(held), at) if before.currency == currency else ()
    grants = {grant.id: grant for grant in before.grants}
    return [_Source(i, amount, account.burn_order(grants[i]), grants[i].expires_at) for i, amount in free]


def _budget(conn: sa.Connection, budget_id: str, zone: ZoneInfo, at: Instant) -> list[_Source]:
    """What is free of a budget; one that was lifted, of which the holder will learn in a moment, limits nothing."""
    found = budgets.state(conn, budget_id, zone, at)
    return [_Source(budget_id, Pico(LEASE_PICO_MAX) if found is None else found.free, budget.ORDER, None)]


def budget_standing(conn: sa.Connection, budget_id: str, zone: ZoneInfo, at: Instant) -> Standing:
    """Return how a budget stands; what dead leases hold counts as given back."""
    found = budgets.state(conn, budget_id, zone, at, alive_from=at - GRACE_US)
    if found is None:
        return Standing(None, Pico(LEASE_PICO_MAX), Pico(0))
    until = None if found.budget.span is budget.Span.UNPAID else found.period.end
    return Standing(None, found.left, found.held, found.budget.amount, until)


def tidy(conn: sa.Connection, customer_id: str, at: Instant) -> None:
    """Close the customer's dead leases and write off what has expired."""
    _swept(conn, customer_id, at)


def _swept(conn: sa.Connection, customer_id: str, at: Instant) -> tuple[Account, list[Lease]]:
    """Lock the customer and then its open leases, and sweep; return what is left of both.

    All leases are locked at once and in the order of their ids, as the recorder of each holder locks them.
    """
    before = credit.lock(conn, customer_id)
    alive = []
    for lease in open_leases(conn, customer_id, is_locking=True):
        if lease.valid_until + GRACE_US < at:
            before = _close(conn, before, lease.id, at)
        else:
            alive.append(lease)
    return credit.settle(conn, credit.expire(conn, before, at), at), alive


def dead_customers(conn: sa.Connection, at: Instant, rows_max: int) -> list[str]:
    """Return customers with leases that nobody renews: `tidy` gives them back."""
    query = sa.select(_LEASES.c.customer_id).distinct().where(_IS_OPEN, _LEASES.c.valid_until < at - GRACE_US)
    return list(conn.execute(query.order_by(_LEASES.c.customer_id).limit(rows_max)).scalars())


def renew(conn: sa.Connection, holder: str, at: Instant) -> dict[str, str]:
    """Let all leases of a holder hold on; return them, and whose they are. One that is missing was closed.

    They are locked in the order of their ids, like everywhere, so that the holder's own recorder can not deadlock.
    """
    mine = sa.select(_LEASES.c.id, _LEASES.c.customer_id).where(_LEASES.c.holder == holder, _IS_OPEN)
    found = {row[0]: row[1] for row in conn.execute(mine.order_by(_LEASES.c.id).with_for_update())}
    if found:
        conn.execute(sa.update(_LEASES).where(_LEASES.c.holder == holder, _IS_OPEN).values(valid_until=at + LEASE_US))
    return found


def recalled(conn: sa.Connection, holder: str) -> list[str]:
    """Return the holder's leases whose unused part others need."""
    query = sa.select(_LEASES.c.id).where(_LEASES.c.holder == holder, _IS_OPEN, _LEASES.c.recalled_at.is_not(None))
    return list(conn.execute(query.suffix_with("/* weir:leases.recalled */")).scalars())


def give_back(conn: sa.Connection, unused: Iterable[Part], at: Instant) -> None:
    """Shrink open leases by what their holder does not use (0: it uses all), which answers a recall.

    It needs no lock on the customer: it only frees. What the holder has used stays covered, by the table's check too.
    """
    for part in sorted(unused):
        left = _LEASES.c.amount_pico - part.amount
        conn.execute(
            sa.update(_LEASES)
            .where(_LEASES.c.id == part.lease_id, _IS_OPEN, left >= _LEASES.c.used_pico)
            .values(amount_pico=left, recalled_at=None, answered_at=at)
        )


def close(conn: sa.Connection, customer_id: str, lease_ids: Iterable[str], at: Instant) -> None:
    """Close leases of one customer whose holder has settled all that it held on them."""
    before, _ = _swept(conn, customer_id, at)
    for lease_id in sorted(lease_ids):
        before = _close(conn, before, lease_id, at)
    credit.settle(conn, credit.expire(conn, before, at), at)


def burn(conn: sa.Connection, before: Account, amount: int, at: Instant) -> tuple[Account, tuple[Part, ...]]:
    """Pay usage that no lease covers from what is free, as far as that goes; the caller has locked the customer.

    It is as if a lease had been taken for it: so each part has a lease (closed at once), and the grant that it burnt.
    """
    free = account.usable(before.grants, _by_source(open_leases(conn, before.customer_id)), at)
    parts = []
    for grant_id, paid in account.slices(free, amount):
        lease_id = _make(conn, before.customer_id, grant_id, SETTLED, paid, at)
        conn.execute(sa.update(_LEASES).where(_LEASES.c.id == lease_id).values(used_pico=_LEASES.c.amount_pico))
        before = _close(conn, before, lease_id, at)
        parts.append(Part(lease_id, paid))
    return before, tuple(parts)


def free(conn: sa.Connection, before: Account, at: Instant) -> Pico:
    """Return what `burn` could pay now: what is neither expired nor on an open lease."""
    held = _by_source(open_leases(conn, before.customer_id))
    return Pico(sum(amount for _, amount in account.usable(before.grants, held, at)))


def standing(conn: sa.Connection, customer_id: str, at: Instant) -> Standing:
    """Return how a customer's credit stands; dead leases and expired credit count as what they will be when swept."""
    held = [lease for lease in open_leases(conn, customer_id) if lease.is_of(customer_id)]
    alive = [lease for lease in held if lease.valid_until + GRACE_US >= at]
    dead = [lease for lease in held if lease.valid_until + GRACE_US < at]
    return _standing(credit.read(conn, customer_id), alive, at, dead)


def open_leases(conn: sa.Connection, customer_id: str, *, is_locking: bool = False) -> list[Lease]:
    """Return a customer's open leases, oldest first."""
    query = sa.select(_LEASES).where(_LEASES.c.customer_id == customer_id, _IS_OPEN).order_by(_LEASES.c.id)
    if is_locking:
        query = query.with_for_update()
    return [Lease(*row) for row in conn.execute(query.suffix_with("/* weir:leases.open */"))]


def _standing(now: Account, alive: Sequence[Lease], at: int, dead: Sequence[Lease] = ()) -> Standing:
    """What is left of each grant, less what leases have used; of an expired grant only what leases still hold."""
    held = sum(lease.amount_pico - lease.used_pico for lease in alive)
    expired = {grant.id for grant in now.grants if grant.is_expired(at)}
    left = sum(grant.left for grant in now.grants if grant.id not in expired)
    used = sum(lease.used_pico for lease in (*alive, *dead) if lease.grant_id not in expired)
    promised = sum(lease.amount_pico - lease.used_pico for lease in alive if lease.grant_id in expired)
    return Standing(now.currency, Pico(left - used + promised - now.owed), Pico(held))


def _by_source(held: Sequence[Lease]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for lease in held:
        sums[lease.source_id] = sums.get(lease.source_id, 0) + lease.amount_pico
    return sums


def _grow(conn: sa.Connection, own: Sequence[Lease], amount: int, at: Instant) -> str | None:
    """Let the newest of the holder's leases of a source grow; None if there is none, or it is old or full."""
    if not own or not 0 <= at - own[-1].taken_at < LEASE_AGE_US or own[-1].amount_pico + amount > LEASE_PICO_MAX:
        return None
    grown = {"amount_pico": _LEASES.c.amount_pico + amount, "valid_until": at + LEASE_US}
    changed = conn.execute(sa.update(_LEASES).where(_LEASES.c.id == own[-1].id, _IS_OPEN).values(grown))
    assert changed.rowcount == 1, "only who locks the customer closes a lease"
    return own[-1].id


def _make(conn: sa.Connection, customer_id: str, source_id: str, holder: str, amount: int, at: Instant) -> str:
    row = {
        "id": ids.new_id("lease"),
        "customer_id": customer_id,
        "budget_id" if is_budget(source_id) else "grant_id": source_id,
        "holder": holder,
        "amount_pico": amount,
        "used_pico": 0,
        "taken_at": at,
        "valid_until": at + LEASE_US,
    }
    conn.execute(sa.insert(_LEASES), row)
    return str(row["id"])


def _close(conn: sa.Connection, before: Account, lease_id: str, at: Instant) -> Account:
    """Close a lease if it is open, and burn what was used of its grant; the caller has locked the customer."""
    closing = sa.update(_LEASES).where(_LEASES.c.id == lease_id, _IS_OPEN).values(closed_at=at)
    row = conn.execute(closing.returning(_LEASES.c.grant_id, _LEASES.c.used_pico)).one_or_none()
    if row is None or row.used_pico == 0 or row.grant_id is None:
        return before
    burnt = next(grant for grant in before.grants if grant.id == row.grant_id)
    return credit.write(conn, before, Kind.BURN, burnt, Pico(-row.used_pico), at, lease_id=lease_id)


def recall_all(conn: sa.Connection, customer_id: str, at: Instant) -> None:
    """Ask every holder for what it does not use of a customer's credit; the customer is locked."""
    unasked = sa.and_(_LEASES.c.customer_id == customer_id, _IS_OPEN, _LEASES.c.recalled_at.is_(None))
    conn.execute(sa.update(_LEASES).where(unasked).values(recalled_at=at))


def _recall(conn: sa.Connection, others: Sequence[Lease], at: Instant) -> bool:
    """Ask other holders for what they do not use; whether an answer may still come."""
    asked = [lease.id for lease in others if lease.recalled_at is None and _may_be_asked(lease, at)]
    if asked:
        conn.execute(sa.update(_LEASES).where(_LEASES.c.id.in_(asked), _IS_OPEN).values(recalled_at=at))
    return bool(asked) or any(lease.recalled_at is not None and at - lease.recalled_at < RECALL_US for lease in others)


def _may_be_asked(lease: Lease, at: Instant) -> bool:
    has_rest = lease.used_pico < lease.amount_pico
    return has_rest and (lease.answered_at is None or at - lease.answered_at >= RECALL_US)
