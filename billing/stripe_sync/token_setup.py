"""Tokens mode at Stripe: a meter, a product and a price for each kind of token of each model, in step with the prices.

What the rate card sells now gets its meter by `weir stripe setup`; what a customer's usage needs beyond that (a margin
of its own, a price that changed) is made by the pusher when that usage appears. A price at Stripe can not be changed:
a new one is made, on a meter on which the customer has no other price (`ledger.token_meters` says which).

Amounts stay possible: corrections, requests that credit paid in part, and usage beyond Stripe's twenty items of a
subscription are billed in millionths, so the meter of amount mode and its item belong to tokens mode, too.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from billing.clock import Instant
from billing.config import Config
from billing.ledger import audit, token_meters
from billing.ledger.database import Database
from billing.ledger.stripe_objects import Kind
from billing.ledger.token_meters import TokenMeter, TokenPrice
from billing.pricing.book import PriceBook
from billing.stripe_sync import setup
from billing.stripe_sync.port import StripePort
from billing.stripe_sync.setup import Step, Wanted
from billing.stripe_sync.token_parts import Rate, TokenType, rates

EVENT_NAME_CHARS_MAX = 100
NAME_CHARS_MAX = 200
_AMOUNT_SUFFIX = "_usage_micro"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class Kept:
    """A rate on its numbered meter: what is wanted at Stripe, and what it is."""

    rate: Rate
    number: int
    want: Wanted


def event_name(config: Config, model: str, token_type: str, number: int) -> str:
    """Return the name of the meter events of a model's tokens: letters, digits, `._-`, at most 100 characters."""
    prefix = config.stripe.meter_event_name.removesuffix(_AMOUNT_SUFFIX)
    digest = hashlib.sha256(model.encode()).hexdigest()
    plain = _UNSAFE.sub("_", model)
    safe = plain if plain == model else f"{plain}-{digest[:8]}"
    end = token_type if number == 1 else f"{token_type}_{number}"
    name = f"{prefix}_tokens_{safe}_{end}"
    if len(name) <= EVENT_NAME_CHARS_MAX:
        return name
    return f"{prefix[:40]}_tokens_{digest[:24]}_{end}"


def kept(config: Config, rate: Rate, number: int, name_of_events: str | None = None) -> Kept:
    """Return what a rate needs at Stripe on the meter with this number. Raises ConfigError for a currency.

    A meter that counts somebody's tokens already keeps its name, whatever the configuration says since.
    """
    currency = config.billing.currency
    is_fee = rate.token_type is TokenType.REQUEST
    name = f"{rate.model} {'requests' if is_fee else rate.token_type.replace('_', ' ') + ' tokens'}"
    want = Wanted(
        event_name=name_of_events or event_name(config, rate.model, rate.token_type, number),
        currency=currency,
        unit_amount=setup.unit_text(rate.unit_pico, currency),
        name=name[:NAME_CHARS_MAX],
        unit_label="request" if is_fee else "token",
        mark=event_name(config, rate.model, rate.token_type, 1),
        unit_pico=rate.unit_pico,
    )
    return Kept(rate, number, want)


def of_card(config: Config, book: PriceBook, at: Instant) -> list[Kept]:
    """Return what the rate card needs: each rate at which a customer without a margin of its own buys now."""
    return [kept(config, rate, 1) for rate in _sold(book, at)]


def _sold(book: PriceBook, at: Instant) -> Iterator[Rate]:
    for model in book.models():
        quote = book.quote(model, None, at)
        if quote is not None:
            yield from rates(model, quote.price)


def preview(wants: Iterable[Kept], port: StripePort) -> list[tuple[Kept, tuple[Step, ...]]]:
    """Return the plan for each rate, changing nothing. Raises StripeError for what can not be used."""
    meters, products = port.meters(), port.products()
    return [(each, setup.preview_from(each.want, port, meters, products)) for each in wants]


def ensure(
    database: Database, port: StripePort, wants: Collection[Kept], now: Instant, actor: str
) -> list[tuple[Kept, tuple[Step, ...]]]:
    """Make or adopt what each rate needs at Stripe and record it; return the steps with the ids."""
    made = []
    for each in wants:
        steps = setup.preview(each.want, port)
        ids = setup.apply(each.want, steps, port)
        _record(database, each, ids, now, actor)
        made.append((each, tuple(replace(step, stripe_id=ids[step.kind]) for step in steps)))
    return made


def _record(database: Database, each: Kept, ids: dict[Kind, str], now: Instant, actor: str) -> None:
    want, rate = each.want, each.rate
    meter = TokenMeter(want.event_name, rate.model, rate.token_type, each.number, ids[Kind.METER], ids[Kind.PRODUCT])
    price = TokenPrice(want.event_name, rate.unit_pico, want.currency, ids[Kind.PRICE])
    with database.writing() as conn:
        is_new = token_meters.record_meter(conn, meter, now)
        is_new |= token_meters.record_price(conn, price, now)
        if is_new:
            details = {"meter": meter.meter_id, "price": price.price_id, "unit_pico": rate.unit_pico}
            audit.record(conn, at=now, actor=actor, action="stripe.setup", subject=want.event_name, details=details)
