"""Usage as FOCUS 1.2 wants it: the FinOps Open Cost and Usage Specification, for tools that know nothing of Weir.

A row is one sort of token (or the fee of requests) of one key, model, price and day. Σ ContractedCost = Σ EffectiveCost
= Σ amounts, to the picounit; Σ BilledCost is that less what prepaid credit paid for, so what goes to Stripe. ListCost
is at the price of whoever has no terms of its own: of the same cost, under the general margin of the time.

Corrections are rows of ChargeClass "Correction", of the day on which they were made, without unit prices; their
quantity is how many there are. Should amounts be other than tokens × prices, a row of the ChargeCategory "Adjustment"
holds the rest, so that no sum is ever wrong. focus-validator 2.2.1 (model 1.2.0.1) fails one rule, which asks for the
InvoiceId of charges that are on an invoice: Stripe's invoices come later, and are of customers, not of lines.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

from billing.calendar import Per, Period, day_start, period_of
from billing.clock import Instant
from billing.ledger import accounts, exporting, key_tags, totals, versions
from billing.ledger.database import Connection
from billing.ledger.exporting import Charge
from billing.ledger.totals import Selection
from billing.money import PICO_PER_MAJOR, Pico
from billing.pricing.book import PriceBook
from billing.pricing.quote import Quote, UnitPrices
from billing.reports.parquet import Column, Kind
from billing.reports.usage import day_of
from billing.usage import Usage

_TOKENS, _REQUESTS = "Tokens", "Requests"
_TEXTS = (
    *("BillingAccountId", "BillingAccountName", "BillingAccountType", "SubAccountId", "SubAccountName"),
    *("SubAccountType", "BillingCurrency", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("CommitmentDiscountStatus", "ConsumedUnit", "PricingUnit", "PricingCategory", "InvoiceIssuerName"),
    *("InvoiceId", "PricingCurrency", "ProviderName"),
    *("PublisherName", "ServiceCategory", "ServiceSubcategory", "ServiceName", "SkuId", "SkuMeter", "SkuPriceId"),
    *("SkuPriceDetails", "Tags"),
)
_TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
_QUANTITIES = ("ConsumedQuantity", "PricingQuantity")
_MONEY = (
    *("ListUnitPrice", "ContractedUnitPrice", "ListCost", "ContractedCost", "BilledCost", "EffectiveCost"),
    *("PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost"),
)

COLUMNS: tuple[Column, ...] = (
    *(Column(name, Kind.TEXT) for name in _TEXTS),
    *(Column(name, Kind.INSTANT) for name in _TIMES),
    *(Column(name, Kind.MONEY) for name in _QUANTITIES),  # FOCUS wants decimals
    *(Column(name, Kind.MONEY) for name in _MONEY),
)
"""The columns of a file, those of FOCUS that apply to what is metered here."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One row's money: a quantity of one unit at a price and a list price, or an amount without either."""

    unit: str
    quantity: int | None
    price: int | None
    list_price: int | None
    amount: int
    list_amount: int
    billed: int
    category: str = "Usage"


@dataclass(frozen=True, slots=True)
class _Names:
    """What ids stand for, and what is said of all rows."""

    customers: Mapping[str, str]
    keys: Mapping[str, str]
    tags: Mapping[str, tuple[str, ...]]
    provider: str
    currency: str


def rows(
    conn: Connection, selection: Selection, book: PriceBook, zone: ZoneInfo, provider: str
) -> Iterator[tuple[object, ...]]:
    """Give the rows of whole hours as `ParquetWriter` takes them, in the order of COLUMNS; by day and customer."""
    extent = totals.span(conn, selection)
    if extent is None:
        return
    days = _day_starts(*extent, zone)
    general = {rule.id for rule in book.margin_rules if rule.scope.customer_id is None and rule.scope.plan_id is None}
    segments = sorted({Instant(0), *(rule.effective_from for rule in book.margin_rules if rule.id in general)})
    credit = {
        (total.start, total.customer_id, total.key_id, total.model): total.credit
        for total in totals.sums(conn, selection, ("customer", "key", "model"), days)
    }
    key_names = {key.id: key.name for key in accounts.list_keys(conn)}
    names = _Names(accounts.customer_names(conn), key_names, key_tags.of_all(conn), provider, book.currency.upper())
    quotes: dict[str, Quote] = {}

    def prices(charge: Charge) -> tuple[Quote, UnitPrices]:
        if charge.price_ref not in quotes:
            quotes[charge.price_ref] = versions.load_quote(conn, charge.price_ref)
        quote = quotes[charge.price_ref]
        if quote.margin_rule_id is None or quote.margin_rule_id in general:
            return quote, quote.price
        at = segments[charge.list_segment - 1]
        return quote, book.list_price(charge.model, quote.cost, at)

    found = exporting.charges(conn, selection, days, segments)
    for key, group in groupby(found, lambda each: (each.day, each.customer_id, each.key_id, each.model)):
        start = days[key[0] - 1]
        paid = credit.get((start, key[1], key[2], key[3]), Pico(0))
        periods = period_of(Per.DAY, start, zone), period_of(Per.MONTH, start, zone)
        for charge, line in _billed(group, prices, paid):
            yield _row(charge, line, names, *periods)


def _day_starts(first: Instant, last: Instant, zone: ZoneInfo) -> list[Instant]:
    day, starts = day_of(first, zone), []
    while (start := day_start(day, zone)) <= last:
        starts.append(start)
        day += timedelta(days=1)
    return starts


def _billed(
    group: Iterable[Charge], prices: Callable[[Charge], tuple[Quote, UnitPrices]], credit: Pico
) -> list[tuple[Charge, _Line]]:
    """Return the lines of a key and model on a day, less their credit: of each what it allows, of the last the rest.

    So corrections that gave credit back come out billed at nothing, as they were.
    """
    lines = [(charge, line) for charge in group for line in _lines(charge, *prices(charge))]
    left = int(credit)
    billed = []
    for number, (charge, line) in enumerate(lines):
        is_last = number == len(lines) - 1
        paid = left if is_last else max(0, min(left, line.amount))
        left -= paid
        billed.append((charge, replace(line, billed=line.amount - paid)))
    return billed


def _lines(charge: Charge, quote: Quote, listed: UnitPrices) -> list[_Line]:
    if charge.is_correction:
        return [_Line(_REQUESTS, None, None, None, charge.amount, charge.amount, charge.amount)]
    lines = []
    for unit, quantity in _quantities(charge.usage, charge.request_count).items():
        price, list_price = getattr(quote.price, unit), getattr(listed, unit)
        if quantity and (price or list_price or unit != "request"):
            amount = quantity * price
            lines.append(_Line(unit, quantity, price, list_price, amount, quantity * list_price, amount))
    rest = charge.amount - sum(line.amount for line in lines)
    if rest:
        lines.append(_Line(_REQUESTS, None, None, None, rest, rest, rest, "Adjustment"))
    return lines


def _quantities(usage: Usage, requests: int) -> dict[str, int]:
    """Return how much there is of each unit that is priced; none of it twice."""
    media = usage.image_input_tokens + usage.audio_input_tokens
    return {
        "input": usage.input_tokens - usage.cached_input_tokens - media,
        "cached_input": usage.cached_input_tokens,
        "image_input": usage.image_input_tokens,
        "audio_input": usage.audio_input_tokens,
        "output": usage.output_tokens - usage.reasoning_tokens,
        "reasoning": usage.reasoning_tokens,
        "request": requests,
    }


def _row(charge: Charge, line: _Line, names: _Names, day: Period, month: Period) -> tuple[object, ...]:
    is_usage = line.quantity is not None
    unit = _REQUESTS if line.unit in {"request", _REQUESTS} else _TOKENS
    what = f"{line.unit.replace('_', ' ')} of {charge.model}" if is_usage else f"correction of {charge.model}"
    tags = dict(text.split("=", 1) for text in names.tags.get(charge.key_id, ()))
    texts = {
        "BillingAccountId": charge.customer_id,
        "BillingAccountName": names.customers.get(charge.customer_id, charge.customer_id),
        "BillingAccountType": "Customer",
        "SubAccountId": charge.key_id,
        "SubAccountName": names.keys.get(charge.key_id, charge.key_id),
        "SubAccountType": "API key",
        "BillingCurrency": names.currency,
        "ChargeCategory": line.category,
        "ChargeClass": "Correction" if charge.is_correction else None,
        "ChargeDescription": what,
        "ChargeFrequency": "Usage-Based",
        "CommitmentDiscountStatus": None,
        "ConsumedUnit": unit if line.category == "Usage" else None,
        "PricingUnit": unit if is_usage else None,
        "PricingCategory": "Standard" if is_usage else None,
        "InvoiceIssuerName": names.provider,
        "InvoiceId": None,
        "PricingCurrency": names.currency,
        "ProviderName": names.provider,
        "PublisherName": names.provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceSubcategory": "Generative AI",
        "ServiceName": "Model inference",
        "SkuId": f"{charge.model}/{line.unit}" if is_usage else None,
        "SkuMeter": f"{line.unit.replace('_', ' ')} {unit.lower()}" if is_usage else None,
        "SkuPriceId": f"{charge.price_ref}/{line.unit}" if is_usage else None,
        "SkuPriceDetails": json.dumps({"x_Model": charge.model, "x_Unit": line.unit}) if is_usage else None,
        "Tags": json.dumps(tags, ensure_ascii=False),
    }
    assert tuple(texts) == _TEXTS, "the values are in the order of the columns"
    consumed = None if line.category != "Usage" else charge.request_count if line.quantity is None else line.quantity
    quantities = (None if each is None else each * PICO_PER_MAJOR for each in (consumed, line.quantity))
    money = (line.list_price, line.price, line.list_amount, line.amount, line.billed, line.amount)
    repeated = (line.list_price, line.price, line.amount)
    return (*texts.values(), month.start, month.end, day.start, day.end, *quantities, *money, *repeated)
