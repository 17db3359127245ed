"""Dated cost rates and margin rules in the ledger, the PriceBook made of them, and the quotes of events.

Versions are appended and never changed. A change takes the row lock of `epoch.advance` first: changes follow
one another, so that each is judged against a book that holds all earlier ones, and every gateway sees it
within a second. All versions are loaded, without a limit: a book that lacks some would charge wrong prices.
"""

from collections.abc import Collection
from dataclasses import astuple
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from billing.clock import instant_text
from billing.errors import ConfigError, NotFoundError, WeirError
from billing.ledger import audit, epoch, facts, plan_terms, schema
from billing.money import amount_number, rate_text
from billing.pricing import publish
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope, parse_margin
from billing.pricing.plans import Assignment
from billing.pricing.quote import UNITS, Quote, UnitPrices
from billing.pricing.rates import CostRate, version_at
from billing.pricing.stated import Stated, stated, words

_NO_MARGIN = "none"
_QUOTE_FIELDS = ("ref", "model", "cost_rate_id", "margin_rule_id", "margin", "currency")


def load_book(conn: sa.Connection, *, default_margin: str, currency: str) -> PriceBook:
    """Return all rates and rules as of this transaction. Raises ConfigError for an impossible default."""
    try:
        default = parse_margin(default_margin)
    except WeirError as error:
        raise ConfigError(f"billing.default_margin: {error}") from None
    rates = conn.execute(sa.select(schema.cost_rates).order_by(schema.cost_rates.c.id))
    rules = conn.execute(sa.select(schema.margin_rules).order_by(schema.margin_rules.c.id))
    return PriceBook(
        map(_cost_rate, rates),
        map(_margin_rule, rules),
        default,
        currency,
        load_assignments(conn),
        plan_terms.every(conn),
    )


def load_assignments(conn: sa.Connection) -> list[Assignment]:
    """Return who is on which plan from when on."""
    assigned = conn.execute(sa.select(schema.plan_assignments).order_by(schema.plan_assignments.c.id))
    return [Assignment(*row) for row in assigned]


def append_cost_rate(
    conn: sa.Connection,
    rate: CostRate,
    *,
    default_margin: str,
    currency: str,
    backdate: bool,
    actor: str,
    reason: str | None = None,
) -> PriceBook:
    """Add a cost, and return the book that it makes.

    Raises UsageError for its model's name, RefusedError where a rule of `pricing.publish` forbids it.
    """
    publish.check_model_name(rate.model)
    publish.check_start(rate.effective_from, rate.recorded_at, backdate=backdate)
    epoch.advance(conn)
    facts.pin_currency(conn, currency, rate.recorded_at)
    book = load_book(conn, default_margin=default_margin, currency=currency).with_cost_rate(rate)
    publish.check_prices(book, publish.affected_by_cost(book, rate.model), rate.effective_from)
    conn.execute(sa.insert(schema.cost_rates).values(_cost_row(rate)))
    details = {
        "model": rate.model,
        "input": rate_text(rate.input),
        "cached_input": None if rate.cached_input is None else rate_text(rate.cached_input),
        "image_input": None if rate.image_input is None else rate_text(rate.image_input),
        "audio_input": None if rate.audio_input is None else rate_text(rate.audio_input),
        "output": rate_text(rate.output),
        "reasoning": None if rate.reasoning is None else rate_text(rate.reasoning),
        "request": amount_number(rate.request),
        "currency": currency,
        "effective_from": instant_text(rate.effective_from),
        "reason": reason,
    }
    audit.record(conn, at=rate.recorded_at, actor=actor, action="cost.set", subject=rate.id, details=details)
    return book


def append_margin_rule(
    conn: sa.Connection,
    rule: MarginRule,
    *,
    default_margin: str,
    currency: str,
    backdate: bool,
    actor: str,
    reason: str | None = None,
) -> PriceBook:
    """Add a rule, or with margin None the end of its scope's rule, and return the book that it makes.

    Raises UsageError for its model's name, NotFoundError if there is nothing to end, RefusedError where a
    rule of `pricing.publish` forbids it.
    """
    if rule.scope.model is not None:
        publish.check_model_name(rule.scope.model)
    publish.check_start(rule.effective_from, rule.recorded_at, backdate=backdate)
    epoch.advance(conn)
    before = load_book(conn, default_margin=default_margin, currency=currency)
    _refuse_empty_removal(before, rule)
    book = before.with_margin_rule(rule)
    check_rule(book, rule)
    insert_margin_rule(conn, rule, actor=actor, reason=reason)
    return book


def check_rule(book: PriceBook, rule: MarginRule) -> None:
    """Refuse a rule that makes impossible prices in the book that holds it. Raises RefusedError."""
    publish.check_prices(book, publish.affected_by_rule(book, rule.scope), rule.effective_from)
    if rule.floor is not None or rule.minimum:
        publish.check_prices(book, publish.affected_by_floor(book, rule.scope), rule.effective_from)


def insert_margin_rule(conn: sa.Connection, rule: MarginRule, *, actor: str, reason: str | None) -> None:
    """Write a rule that was checked, and its line in the audit log."""
    conn.execute(sa.insert(schema.margin_rules).values(_margin_row(rule)))
    details = {
        "scope": str(rule.scope),
        "model": rule.scope.model,
        "customer_id": rule.scope.customer_id,
        "plan_id": rule.scope.plan_id,
        "margin": None if rule.margin is None else str(rule.margin),
        "floor": None if rule.floor is None else str(rule.floor),
        "fixed": words(rule.fixed) or None,
        "minimum": words(rule.minimum) or None,
        "allow_loss": rule.allow_loss,
        "effective_from": instant_text(rule.effective_from),
        "reason": reason,
    }
    action = "margin.remove" if rule.margin is None else "margin.set"
    audit.record(conn, at=rule.recorded_at, actor=actor, action=action, subject=rule.id, details=details)


def _refuse_empty_removal(book: PriceBook, rule: MarginRule) -> None:
    if rule.margin is not None:
        return
    current = version_at(book.versions_of_margin(rule.scope), rule.effective_from)
    if current is None or current.margin is None:
        when = instant_text(rule.effective_from)
        raise NotFoundError(
            f"the {rule.scope} scope has no margin rule at {when}; see `weir margin list`, or give --from"
        )


def store_quote(conn: sa.Connection, quote: Quote) -> None:
    """Keep a quote under its ref; one that is there already stays, and must be the same."""
    insert = sqlite.insert if conn.dialect.name == "sqlite" else postgresql.insert
    statement = insert(schema.price_quotes).values(_quote_row(quote))
    conn.execute(statement.on_conflict_do_nothing(index_elements=[schema.price_quotes.c.ref]))
    assert load_quote(conn, quote.ref) == quote, "two different quotes have the same ref"


def load_quote(conn: sa.Connection, ref: str) -> Quote:
    """Return the quote that an event names. Raises NotFoundError."""
    table = schema.price_quotes
    row = conn.execute(sa.select(table).where(table.c.ref == ref)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no quote {ref!r}")
    return Quote(
        **{name: getattr(row, name) for name in _QUOTE_FIELDS},
        cost=_unit_prices(row, "cost_"),
        price=_unit_prices(row, ""),
    )


def _unit_prices(row: sa.Row[Any], prefix: str) -> UnitPrices:
    """Return the prices in a quote's row; what an older release left out costs as input."""
    values = {unit: getattr(row, f"{prefix}{unit}_pico") for unit in UNITS}
    return UnitPrices(**{unit: value for unit, value in values.items() if value is not None})


def load_prices(conn: sa.Connection, refs: Collection[str]) -> dict[str, UnitPrices]:
    """Return the unit prices of these quotes; one that is not there is left out."""
    table = schema.price_quotes
    query = sa.select(table.c.ref, *(table.c[f"{unit}_pico"] for unit in UNITS)).where(table.c.ref.in_(sorted(refs)))
    return {row.ref: _unit_prices(row, "") for row in conn.execute(query)}


def _quote_row(quote: Quote) -> dict[str, Any]:
    return {
        **{name: getattr(quote, name) for name in _QUOTE_FIELDS},
        **{f"cost_{unit}_pico": value for unit, value in zip(UNITS, astuple(quote.cost), strict=True)},
        **{f"{unit}_pico": value for unit, value in zip(UNITS, astuple(quote.price), strict=True)},
    }


def _cost_rate(row: sa.Row[Any]) -> CostRate:
    return CostRate(
        id=row.id,
        model=row.model,
        input=row.input_pico,
        cached_input=row.cached_input_pico,
        output=row.output_pico,
        reasoning=row.reasoning_pico,
        request=row.request_pico,
        effective_from=row.effective_from,
        recorded_at=row.recorded_at,
        image_input=row.image_input_pico,
        audio_input=row.audio_input_pico,
    )


def _cost_row(rate: CostRate) -> dict[str, Any]:
    return {
        "id": rate.id,
        "model": rate.model,
        "input_pico": rate.input,
        "cached_input_pico": rate.cached_input,
        "output_pico": rate.output,
        "reasoning_pico": rate.reasoning,
        "request_pico": rate.request,
        "image_input_pico": rate.image_input,
        "audio_input_pico": rate.audio_input,
        "effective_from": rate.effective_from,
        "recorded_at": rate.recorded_at,
    }


def _margin_rule(row: sa.Row[Any]) -> MarginRule:
    return MarginRule(
        id=row.id,
        scope=Scope(row.model, row.customer_id, row.plan_id),
        margin=None if row.kind == _NO_MARGIN else Margin(MarginKind(row.kind), row.share_ppm),
        allow_loss=bool(row.allow_loss),
        effective_from=row.effective_from,
        recorded_at=row.recorded_at,
        floor=None if row.floor_kind is None else Margin(MarginKind(row.floor_kind), row.floor_ppm),
        fixed=_stated(row, "fixed"),
        minimum=_stated(row, "minimum"),
    )


def _stated(row: sa.Row[Any], name: str) -> Stated:
    values = {unit: getattr(row, f"{name}_{unit}_pico") for unit in UNITS}
    return stated({unit: value for unit, value in values.items() if value is not None})


def _margin_row(rule: MarginRule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "model": rule.scope.model,
        "customer_id": rule.scope.customer_id,
        "plan_id": rule.scope.plan_id,
        "kind": _NO_MARGIN if rule.margin is None else rule.margin.kind.value,
        "share_ppm": 0 if rule.margin is None else rule.margin.share_ppm,
        "allow_loss": int(rule.allow_loss),
        "effective_from": rule.effective_from,
        "recorded_at": rule.recorded_at,
        "floor_kind": None if rule.floor is None else rule.floor.kind.value,
        "floor_ppm": None if rule.floor is None else rule.floor.share_ppm,
        **{f"fixed_{unit}_pico": dict(rule.fixed).get(unit) for unit in UNITS},
        **{f"minimum_{unit}_pico": dict(rule.minimum).get(unit) for unit in UNITS},
    }
