"""Invoice lines: quantities from the meter, amounts in whole minor units, each line rounded once.

Documented: the amount of a line is quantity times price, rounded to the nearest minor unit per line, before
the lines are added (the documentation's example: 30 at 0.05 is 1.5, billed as 2); a negative total of usage
is billed as 0; an integer `quantity` that is truncated beside an exact `quantity_decimal`. Assumed: exact
halves round up; a graduated price gives one line per tier that is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal, localcontext

from .account import Account, Json, LineSource
from .catalog import plain_text


def lines_of(account: Account, invoice: Json, sources: list[LineSource]) -> list[Json]:
    """The invoice's lines as of now."""
    return [line for source in sources for line in _lines(account, invoice, source)]


def _lines(account: Account, invoice: Json, source: LineSource) -> Iterator[Json]:
    if source.price is None:
        assert source.amount is not None
        yield _line(account, invoice, source, source.amount, Decimal(1), None, "Adjustment")
        return
    quantity = usage_of(account, invoice["customer"], source)
    product = account.find(source.price["product"])
    name = product["name"] if product else source.price["product"]
    for part, unit, amount in priced(account, source.price, quantity):
        text = f"{plain_text(part)} × {name}"
        yield _line(account, invoice, source, amount, part, unit, text)


def usage_of(account: Account, customer: str, source: LineSource) -> Decimal:
    """The quantity to bill: fixed, or what the meter counted; never below zero."""
    assert source.price is not None
    if source.quantity is not None:
        return Decimal(source.quantity)
    meter = account.get("billing.meter", source.price["recurring"]["meter"])
    events = account.usage.counted(meter["id"], customer, source.start, source.end, account.now())
    return max(Decimal(0), account.usage.aggregate(meter, events))


def priced(account: Account, price: Json, quantity: Decimal) -> list[tuple[Decimal, str | None, int]]:
    """(quantity, unit price in minor units, rounded amount) per line."""
    with localcontext(prec=60):
        return _priced(account, price, quantity)


def _priced(account: Account, price: Json, quantity: Decimal) -> list[tuple[Decimal, str | None, int]]:
    if price["billing_scheme"] == "per_unit":
        billed = packages(quantity, price["transform_quantity"])
        return [(quantity, price["unit_amount_decimal"], rounded(billed * Decimal(price["unit_amount_decimal"])))]
    tiers: list[Json] = account.hidden[price["id"]]["tiers"]
    if price["tiers_mode"] == "volume":
        tier = next(each for each in tiers if each["up_to"] is None or quantity <= each["up_to"])
        return [(quantity, tier["unit_amount_decimal"], _tier_amount(tier, quantity))]
    parts: list[tuple[Decimal, str | None, int]] = []
    below = Decimal(0)
    for tier in tiers:
        top = quantity if tier["up_to"] is None else min(quantity, Decimal(tier["up_to"]))
        if top > below or not parts:
            parts.append((top - below, tier["unit_amount_decimal"], _tier_amount(tier, top - below)))
        below = max(below, top)
    return parts


def _tier_amount(tier: Json, quantity: Decimal) -> int:
    flat = Decimal(tier["flat_amount_decimal"] or 0) if quantity > 0 else Decimal(0)
    return rounded(flat + quantity * Decimal(tier["unit_amount_decimal"] or 0))


def packages(quantity: Decimal, transform: Json | None) -> Decimal:
    """`transform_quantity`: whole packages, rounded as the price says."""
    if transform is None:
        return quantity
    direction = ROUND_CEILING if transform["round"] == "up" else ROUND_FLOOR
    divide_by: int = transform["divide_by"]
    with localcontext(prec=60):
        return (quantity / divide_by).quantize(Decimal(1), rounding=direction)


def rounded(amount: Decimal) -> int:
    """Whole minor units, halves up."""
    with localcontext(prec=60):
        return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _line(
    account: Account,
    invoice: Json,
    source: LineSource,
    amount: int,
    quantity: Decimal,
    unit: str | None,
    text: str,
) -> Json:
    subscription = invoice["parent"]["subscription_details"]["subscription"] if invoice["parent"] else None
    return {
        "id": account.new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": invoice["currency"],
        "description": text,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": {},
        "parent": None
        if source.item is None
        else {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": subscription,
                "subscription_item": source.item,
            },
            "type": "subscription_item_details",
        },
        "period": {"start": source.start, "end": source.end},
        "pretax_credit_amounts": [],
        "pricing": None
        if source.price is None
        else {
            "price_details": {"price": source.price["id"], "product": source.price["product"]},
            "type": "price_details",
            "unit_amount_decimal": unit,
        },
        "quantity": int(quantity),
        "quantity_decimal": plain_text(quantity),
        "subtotal": amount,
        "taxes": [],
    }
