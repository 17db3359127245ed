"""Budgets and credit limits: set, and what is left of them by the ledger.

What is used is the sum of the hourly rollups of the period, which grow in the transaction that records each event, and
so does the use of its leases. Usage and what leases may still use are read by one statement, on one snapshot: an event
that is recorded meanwhile is seen in the one or in the other. So used + unused never exceeds a hard budget (I7), and a
worker that died takes nothing away for longer than its leases last.

An unpaid amount is usage that credit did not pay for, since `customers.paid_until`, or since the present billing period
at Stripe began while no invoice is overdue.
"""

from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing.calendar import Period
from billing.clock import Instant
from billing.credit import budget
from billing.credit.budget import Budget, Span
from billing.errors import UsageError
from billing.ledger import audit, epoch, schema
from billing.limits import GRANT_PICO_MAX
from billing.money import PICO_PER_MICRO, Pico, amount_text, format_amount, join, split

_BUDGETS = schema.budgets
_LEASES = schema.leases
_HOURLY = schema.usage_hourly
_CUSTOMERS = schema.customers
_ORDER = sa.case((_BUDGETS.c.span == Span.UNPAID.value, 0), (_BUDGETS.c.span == Span.MONTH.value, 1), else_=2)


class State(NamedTuple):
    """How a budget stands: what it allows in the period, what was used of it, and what leases may still use."""

    budget: Budget
    period: Period
    used: Pico
    held: Pico

    @property
    def left(self) -> Pico:
        """What is not used; below zero where a budget was lowered, or a soft one is exceeded."""
        return Pico(self.budget.amount - self.used)

    @property
    def free(self) -> Pico:
        """What may be leased."""
        return Pico(max(0, self.left - self.held))


def put(
    conn: sa.Connection,
    customer_id: str,
    key_id: str | None,
    span: Span,
    amount: Pico,
    *,
    is_soft: bool,
    currency: str,
    at: Instant,
    actor: str,
) -> None:
    """Set a budget, or change it; what workers hold of it unused is asked back, so that a lower one holds at once.

    Raises UsageError for what is no budget. The customer and the key exist: their foreign keys say so.
    """
    if not 0 <= amount <= GRANT_PICO_MAX:
        most = amount_text(Pico(GRANT_PICO_MAX)).partition(".")[0]
        raise UsageError(f"{format_amount(amount, currency)} is not between 0 and {most} {currency}")
    epoch.advance(conn)
    named = budget.budget_id(customer_id, span, key_id)
    micro, pico = split(amount)
    values = {"amount_micro": micro, "amount_pico": pico, "is_soft": int(is_soft), "set_at": at}
    if conn.execute(sa.update(_BUDGETS).where(_BUDGETS.c.id == named).values(values)).rowcount == 0:
        row = {"id": named, "customer_id": customer_id, "api_key_id": key_id, "span": span.value, **values}
        conn.execute(sa.insert(_BUDGETS), row)
    _recall(conn, named, at)
    details = {"budget": format_amount(amount, currency), "per": span.value, "is_soft": is_soft}
    audit.record(conn, at=at, actor=actor, action="budget.set", subject=key_id or customer_id, details=details)


def remove(conn: sa.Connection, customer_id: str, key_id: str | None, span: Span, at: Instant, actor: str) -> bool:
    """Lift a budget; False if there is none."""
    epoch.advance(conn)
    named = budget.budget_id(customer_id, span, key_id)
    if conn.execute(sa.delete(_BUDGETS).where(_BUDGETS.c.id == named)).rowcount == 0:
        return False
    _recall(conn, named, at)
    audit.record(
        conn, at=at, actor=actor, action="budget.remove", subject=key_id or customer_id, details={"per": span.value}
    )
    return True


def _recall(conn: sa.Connection, named: str, at: Instant) -> None:
    leased = sa.update(_LEASES).where(_LEASES.c.budget_id == named, _LEASES.c.closed_at.is_(None))
    conn.execute(leased.values(recalled_at=at))


def of_customer(conn: sa.Connection, customer_id: str) -> list[Budget]:
    """Return all budgets of a customer and of its keys: the customer's first, the longest span first."""
    return _found(conn, _BUDGETS.c.customer_id == customer_id)


def of_all(conn: sa.Connection) -> list[Budget]:
    """Return all budgets there are."""
    return _found(conn, sa.true())


def applying(conn: sa.Connection, customer_id: str, key_id: str) -> list[Budget]:
    """Return the budgets that a request with this key falls under, in the same order."""
    of_key = sa.or_(_BUDGETS.c.api_key_id.is_(None), _BUDGETS.c.api_key_id == key_id)
    return _found(conn, sa.and_(_BUDGETS.c.customer_id == customer_id, of_key))


def state(conn: sa.Connection, budget_id: str, zone: ZoneInfo, at: int, *, alive_from: int = 0) -> State | None:
    """Return how a budget stands in the period that holds an instant; None if there is no such budget (any more).

    Leases that nobody renewed since `alive_from` count as given back.
    """
    found = _found(conn, _BUDGETS.c.id == budget_id)
    return None if not found else _state(conn, found[0], zone, at, alive_from)


def states(conn: sa.Connection, budgets: list[Budget], zone: ZoneInfo, at: int, *, alive_from: int = 0) -> list[State]:
    """Return how budgets stand."""
    return [_state(conn, each, zone, at, alive_from) for each in budgets]


def _state(conn: sa.Connection, of: Budget, zone: ZoneInfo, at: int, alive_from: int) -> State:
    since = _unpaid_since(conn, of.customer_id) if of.span is Span.UNPAID else 0
    counted = budget.period(of.span, at, zone, since)
    row = conn.execute(_sums(of, counted, alive_from)).one()
    return State(of, counted, join(int(row[0] or 0), int(row[1] or 0)), join(int(row[2] or 0), int(row[3] or 0)))


def _sums(of: Budget, counted: Period, alive_from: int) -> sa.Select[Any]:
    """What was used, and what leases may still use, each in micro-units and picounits, by one statement."""
    micro: sa.ColumnElement[int] = _HOURLY.c.amount_micro
    pico: sa.ColumnElement[int] = _HOURLY.c.amount_pico
    if of.span is Span.UNPAID:
        micro, pico = micro - _HOURLY.c.credit_micro, pico - _HOURLY.c.credit_pico
    used = sa.select(sa.func.sum(micro).label("micro"), sa.func.sum(pico).label("pico")).where(
        _HOURLY.c.customer_id == of.customer_id,
        _HOURLY.c.window_start >= counted.start,
        _HOURLY.c.window_start < counted.end,
        *([] if of.key_id is None else [_HOURLY.c.api_key_id == of.key_id]),
    )
    rest = _LEASES.c.amount_pico - _LEASES.c.used_pico
    unused = sa.select(
        sa.func.sum(rest // PICO_PER_MICRO).label("micro"), sa.func.sum(rest % PICO_PER_MICRO).label("pico")
    ).where(
        _LEASES.c.customer_id == of.customer_id,
        _LEASES.c.closed_at.is_(None),
        _LEASES.c.budget_id == of.id,
        _LEASES.c.valid_until >= alive_from,
        _LEASES.c.taken_at < counted.end,  # of a period that is over: what is on a later lease was not used in it
    )
    first, second = used.subquery(), unused.subquery()
    query = sa.select(first.c.micro, first.c.pico, second.c.micro, second.c.pico).select_from(
        first.join(second, sa.true())
    )
    return query.suffix_with("/* weir:budgets.state */")


def _unpaid_since(conn: sa.Connection, customer_id: str) -> int:
    columns = (_CUSTOMERS.c.paid_until, _CUSTOMERS.c.period_start, _CUSTOMERS.c.past_due_since)
    row = conn.execute(sa.select(*columns).where(_CUSTOMERS.c.id == customer_id)).one()
    since = [row.paid_until or 0]
    if row.past_due_since is None:
        since.append(row.period_start or 0)
    return max(since)


def _found(conn: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Budget]:
    order = (sa.func.coalesce(_BUDGETS.c.api_key_id, ""), _ORDER, _BUDGETS.c.id)
    return [
        Budget(
            id=row.id,
            customer_id=row.customer_id,
            key_id=row.api_key_id,
            span=Span(row.span),
            amount=join(row.amount_micro, row.amount_pico),
            is_soft=bool(row.is_soft),
        )
        for row in conn.execute(sa.select(_BUDGETS).where(condition).order_by(*order))
    ]
