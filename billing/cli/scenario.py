"""What `weir simulate` and `weir margin plan` share: the options that describe other prices, and the book they make."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from billing.clock import Instant
from billing.errors import UsageError
from billing.ledger import accounts, plans
from billing.ledger.database import Connection
from billing.pricing import publish, rate_card
from billing.pricing.margins import MarginRule, Scope
from billing.pricing.plans import stand_in
from billing.pricing.rate_card import Card, Entry
from billing.pricing.stated import Stated

CARD_BYTES_MAX = 2**20
_Command = TypeVar("_Command", bound=Callable[..., Any])


def explaining(command: _Command) -> _Command:
    """Add the options that say who changes prices, and why."""
    actor = click.option("--actor", metavar="NAME", help="Who, for the audit log.  [default: cli:$USER]")
    reason = click.option("--reason", metavar="TEXT", help="Why, for the audit log.")
    return reason(actor(command))


def stating(command: _Command) -> _Command:
    """Add the options that state prices in money; `prices_of` reads them."""
    for name, text in (
        ("minimum", "The least price of a unit under the rule, such as input=0.02."),
        ("fixed", "A price per 1M tokens, such as output=0.10 (request=0.001: per request)."),
    ):
        command = click.option(f"--{name}", name, metavar="UNIT=PRICE", multiple=True, help=text)(command)
    return command


def prices_of(pairs: tuple[str, ...], option: str, *, force: bool) -> Stated:
    """Read what `stating` was given. Raises UsageError, RefusedError, InvalidAmountError."""
    given: dict[str, str] = {}
    for pair in pairs:
        unit, sign, price = pair.partition("=")
        if not sign or unit in given:
            raise UsageError(f"{option} {pair}: write UNIT=PRICE, each unit once, such as output=0.10")
        given[unit] = price
    return publish.read_stated(given, option, force=force)


def read_card(file: Path, *, force: bool = False) -> Card:
    """Read a rate card. Raises UsageError, RefusedError."""
    if file.stat().st_size > CARD_BYTES_MAX:
        raise UsageError(f"{file} has more than {CARD_BYTES_MAX} bytes and is no rate card")
    try:
        return rate_card.parse(file.read_text(encoding="utf-8"), force=force)
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8") from None
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


def scope_of(conn: Connection, model: str | None, customer: str | None, plan: str | None) -> Scope:
    """Return whom a rule is for, who is named by name or id. Raises UsageError, NotFoundError."""
    if model is not None:
        publish.check_model_name(model)
    if customer is not None and plan is not None:
        raise UsageError("a margin is for a customer or for a plan, not for both; a customer's own margin wins anyway")
    customer_id = None if customer is None else accounts.find_customer(conn, customer).id
    return Scope(model, customer_id, None if plan is None else plans.find(conn, plan).id)


def names_of(conn: Connection) -> dict[str, str]:
    """Return what people call every customer, every plan, and whoever stands for a plan's customers, by id."""
    named = plans.names(conn)
    return {
        **accounts.customer_names(conn),
        **named,
        **{stand_in(plan_id): f"plan {name}" for plan_id, name in named.items()},
    }


def rules_of(conn: Connection, entries: Mapping[str, Entry], at: Instant) -> tuple[MarginRule, ...]:
    """Return the entries as rules that begin at an instant, by the id that each is to have.

    Raises NotFoundError for a customer, UsageError if two entries turn out to be for the same.
    """
    rules: dict[Scope, MarginRule] = {}
    for rule_id, entry in entries.items():
        scope = scope_of(conn, entry.model, entry.customer, entry.plan)
        if scope in rules:
            raise UsageError(f"the rate card has two tables for {entry.subject}; keep one")
        rules[scope] = MarginRule(
            rule_id, scope, entry.margin, entry.allow_loss, at, at, entry.floor, entry.fixed, entry.minimum
        )
    return tuple(rules.values())
