"""What `weir customer` and `weir key` have in common about limits: options of budgets and rates, and how they stand."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from billing.cli.app import Session
from billing.cli.output import Row
from billing.credit.budget import Span
from billing.errors import UsageError
from billing.ledger import budgets
from billing.ledger.accounts import KEY_LIMIT_MAX
from billing.ledger.budgets import State
from billing.ledger.database import Connection
from billing.ledger.settings import LIMITS
from billing.money import parse_amount
from billing.reports import standing

NONE = "none"
LIMIT = click.IntRange(0, KEY_LIMIT_MAX)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def budget_options(command: _Command) -> _Command:
    """Add the options that set a budget of a calendar period; `none` lifts it."""
    soft = click.option("--soft", "is_soft", is_flag=True, help="Only tell when it is used up, and refuse nothing.")
    per = click.option(
        "--per", type=click.Choice(["day", "month"]), help="The period of --budget, in billing.timezone."
    )
    amount = click.option("--budget", metavar="AMOUNT|none", help="The most that may be used in each period.")
    return amount(per(soft(command)))


def rate_options(command: _Command) -> _Command:
    """Add the options that change rate limits."""
    rpm = click.option("--rpm", type=LIMIT, help="Requests per minute; 0: no limit.")
    tpm = click.option("--tpm", type=LIMIT, help="Tokens per minute; 0: no limit.")
    concurrency = click.option("--concurrency", type=LIMIT, help="Requests at a time; 0: no limit.")
    return rpm(tpm(concurrency(command)))


def given_limits(values: dict[str, int | None]) -> dict[str, int]:
    """Return the rate limits that were given."""
    return {name: limit for name in LIMITS if (limit := values[name]) is not None}


def apply_budget(
    session: Session, conn: Connection, customer_id: str, key_id: str | None, span: Span, text: str, *, is_soft: bool
) -> None:
    """Set or (with `none`) lift a budget. Raises UsageError."""
    if text == NONE:
        budgets.remove(conn, customer_id, key_id, span, session.now, session.actor)
        return
    budgets.put(
        conn,
        customer_id,
        key_id,
        span,
        parse_amount(text),
        is_soft=is_soft,
        currency=session.config.billing.currency,
        at=session.now,
        actor=session.actor,
    )


def period_span(amount: str | None, per: str | None, *, is_soft: bool) -> Span | None:
    """Return the period of a budget that was given, None if none was. Raises UsageError for half of the options."""
    if amount is None and per is None and not is_soft:
        return None
    if amount is None or per is None:
        raise UsageError("a budget needs both --budget AMOUNT and --per day|month")
    return Span(per)


def rows(session: Session, conn: Connection, customer_id: str) -> list[Row]:
    """Return how each budget of a customer and of its keys stands."""
    found = budgets.of_customer(conn, customer_id)
    states: list[State] = budgets.states(conn, found, session.config.billing.zone, session.now)
    return [standing.row(each, session.config.billing.currency) for each in states]


def all_rows(session: Session, conn: Connection) -> dict[str, list[Row]]:
    """Return the same of all customers that have budgets, by the customer's id."""
    customer_ids = sorted({each.customer_id for each in budgets.of_all(conn)})
    return {customer_id: rows(session, conn, customer_id) for customer_id in customer_ids}
