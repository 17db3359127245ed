"""Looks at who used something of late, and writes down which thresholds were crossed.

Its cost follows the customers that are active, not those that there are: one indexed query where nobody is.
"""

from billing.clock import HOUR_US, Instant
from billing.config import Config
from billing.ledger import accounts, budgets, leases, notifications
from billing.ledger.database import Connection, Database
from billing.ledger.notifications import Active
from billing.money import Pico, parse_amount
from billing.notify import messages
from billing.notify.messages import Message, Who

LATE_US = 2 * HOUR_US
"""Usage counts in the window of its end; what is recorded later than this (from a spool) is told with the next."""


def look(config: Config, database: Database, now: Instant) -> int:
    """Write down what is to be told; return how many messages are new."""
    with database.reading() as conn:
        found = [each for who in notifications.active(conn, now - LATE_US) for each in _of(conn, config, who, now)]
        known = notifications.are_known(conn, [each.once for each in found])
    new = [each for each in found if each.once not in known]
    written = 0
    for message in new:
        with database.writing() as conn:
            written += notifications.add(conn, message.once, message.customer_id, message.type, message.body, now)
    return written


def refused(config: Config, conn: Connection, budget_id: str, at: Instant) -> None:
    """Write down that a hard budget has refused a request: once in a period."""
    state = budgets.state(conn, budget_id, config.billing.zone, at)
    if state is not None:
        customer = accounts.get_customer(conn, state.budget.customer_id)
        message = messages.of_refusal(state, Who(customer.id, customer.name), config.billing.currency, at)
        notifications.add(conn, message.once, message.customer_id, message.type, message.body, at)


def _of(conn: Connection, config: Config, active: Active, now: Instant) -> list[Message]:
    who, currency = Who(active.id, active.name), config.billing.currency
    told: list[Message] = []
    if active.has_budget:
        of_customer = budgets.of_customer(conn, active.id)
        for state in budgets.states(conn, of_customer, config.billing.zone, now):
            told += messages.of_budget(state, who, currency, now)
    below = parse_amount(config.notify.low_balance) if config.notify.low_balance else Pico(0)
    if active.has_credit and below > 0:
        held = leases.standing(conn, active.id, now)
        given = notifications.given_seq(conn, active.id)
        low = messages.of_balance(held, who, below, given, currency, now)
        told += [] if low is None else [low]
    return told
