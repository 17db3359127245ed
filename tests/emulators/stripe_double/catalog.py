"""Products and prices. What a price says about money is fixed at its creation; only labels can change.

Documented and enforced: a metered price needs a meter (since 2025-03-31.basil); `unit_amount_decimal` has at
most 12 decimal places, and `unit_amount` is null unless it is whole; a lookup key belongs to one price, until
transferred.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from .account import Account, Json
from .errors import invalid
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route

DECIMAL_PLACES_MAX = 12
_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?")
"""Whether Stripe takes exponents is undocumented; the SDK makes them of small Decimals: refused."""
PRODUCT_FIELDS = "active description metadata name statement_descriptor unit_label url"
PRICE_FIELDS = (
    "active billing_scheme currency lookup_key metadata nickname product product_data recurring"
    " tax_behavior tiers tiers_mode transfer_lookup_key transform_quantity unit_amount"
    " unit_amount_decimal"
)


def create_product(account: Account, call: Call) -> Json:
    """POST /v1/products; the caller may choose the id, so that a repeated setup finds its product."""
    return _new_product(account, call.parameters)


def _new_product(account: Account, asked: Json) -> Json:
    product_id = asked.get("id") or account.new_id("prod")
    if product_id in account.objects.get("product", {}):
        raise invalid(f"Product already exists.: {product_id}", code="resource_already_exists", param="id")
    product: Json = {
        "id": product_id,
        "object": "product",
        "active": asked.get("active", True),
        "created": account.now(),
        "default_price": None,
        "description": asked.get("description"),
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": merge_metadata({}, asked.get("metadata")),
        "name": asked["name"],
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": asked.get("statement_descriptor"),
        "tax_code": None,
        "unit_label": asked.get("unit_label"),
        "updated": account.now(),
        "url": asked.get("url"),
    }
    account.add(product)
    account.emit("product.created", product)
    return product


def retrieve_product(account: Account, call: Call) -> Json:
    """GET /v1/products/{id}"""
    return account.get("product", call.id)


def change_product(account: Account, call: Call) -> Json:
    """POST /v1/products/{id}"""
    product = account.get("product", call.id)
    previous = update(product, call, PRODUCT_FIELDS)
    if previous:
        product["updated"] = account.now()
        account.emit("product.updated", product, previous)
    return product


def delete_product(account: Account, call: Call) -> Json:
    """DELETE /v1/products/{id}; refused while it has prices."""
    product = account.get("product", call.id)
    if any(price["product"] == call.id for price in account.all("price")):
        raise invalid("This product cannot be deleted because it has one or more user-created prices.")
    account.emit("product.deleted", product)
    return account.remove("product", call.id)


def list_products(account: Account, call: Call) -> Json:
    """GET /v1/products"""
    asked = call.parameters
    found = newest_first(account, "product", call)
    return page(
        call,
        (
            each
            for each in found
            if asked.get("active") in (None, each["active"]) and ("ids" not in asked or each["id"] in asked["ids"])
        ),
    )


def create_price(account: Account, call: Call) -> Json:
    """POST /v1/prices"""
    asked = call.parameters
    if ("product" in asked) == ("product_data" in asked):
        raise invalid("You must specify either `product` or `product_data` when creating a price.", is_stored=False)
    _check_recurring(account, asked.get("recurring"))
    scheme = asked.get("billing_scheme", "per_unit")
    if scheme == "tiered" and not ("tiers" in asked and "tiers_mode" in asked):
        raise invalid("`tiers` and `tiers_mode` are required when `billing_scheme` is `tiered`.", param="tiers")
    if scheme == "tiered" and "transform_quantity" in asked:
        raise invalid("`transform_quantity` cannot be combined with `tiers`.", param="transform_quantity")
    whole, decimal = (None, None) if scheme == "tiered" else amounts(asked, "unit_amount")
    if scheme == "per_unit" and decimal is None:
        raise invalid("You must specify `unit_amount` or `unit_amount_decimal`.", param="unit_amount", is_stored=False)
    product = (
        _new_product(account, asked["product_data"])
        if "product_data" in asked
        else account.get("product", asked["product"], param="product")
    )
    _claim_lookup_key(account, asked)
    recurring = asked.get("recurring")
    price: Json = {
        "id": account.new_id("price"),
        "object": "price",
        "active": asked.get("active", True),
        "billing_scheme": scheme,
        "created": account.now(),
        "currency": asked["currency"].lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": asked.get("lookup_key"),
        "metadata": merge_metadata({}, asked.get("metadata")),
        "nickname": asked.get("nickname"),
        "product": product["id"],
        "recurring": None
        if recurring is None
        else {
            "interval": recurring["interval"],
            "interval_count": recurring.get("interval_count", 1),
            "meter": recurring.get("meter"),
            "usage_type": recurring.get("usage_type", "licensed"),
        },
        "tax_behavior": asked.get("tax_behavior", "unspecified"),
        "tiers_mode": asked.get("tiers_mode"),
        "transform_quantity": asked.get("transform_quantity"),
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": whole,
        "unit_amount_decimal": decimal,
    }
    account.add(price)
    if scheme == "tiered":
        account.hidden[price["id"]] = {"tiers": _tiers(asked["tiers"])}
    account.emit("price.created", price)
    return price


def _check_recurring(account: Account, recurring: Json | None) -> None:
    """A metered price needs an active meter; a licensed one has none."""
    if recurring is None:
        return
    if recurring.get("usage_type") != "metered":
        if "meter" in recurring:
            raise invalid("`recurring[meter]` requires `recurring[usage_type]=metered`.", param="recurring[meter]")
        return
    if "meter" not in recurring:
        raise invalid("`recurring[meter]` is required for metered prices.", param="recurring[meter]", is_stored=False)
    meter = account.get("billing.meter", recurring["meter"], param="recurring[meter]")
    if meter["status"] != "active":
        raise invalid("An inactive meter cannot be attached to a price.", param="recurring[meter]")


def amounts(asked: Json, name: str) -> tuple[int | None, str | None]:
    """The whole and the decimal form of an amount in minor units; the whole one is null when there is a
    fraction.
    """
    if name in asked and f"{name}_decimal" in asked:
        raise invalid(f"Specify only one of `{name}` and `{name}_decimal`.", param=name, is_stored=False)
    text = asked.get(f"{name}_decimal")
    if text is None:
        whole: Any = asked.get(name)
        return whole, None if whole is None else str(whole)
    if not _PLAIN.fullmatch(text):
        raise invalid(f"Invalid decimal: {text}", param=f"{name}_decimal", is_stored=False)
    value = Decimal(text)
    exponent = value.normalize().as_tuple().exponent
    if not isinstance(exponent, int) or -exponent > DECIMAL_PLACES_MAX or value < 0:
        raise invalid(
            f"`{name}_decimal` must not be negative and has at most {DECIMAL_PLACES_MAX} decimal places.",
            param=f"{name}_decimal",
            is_stored=False,
        )
    plain = plain_text(value)
    return (int(value) if value == int(value) else None), plain


def plain_text(value: Decimal) -> str:
    """A decimal without exponent and without idle zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _tiers(asked: list[Json]) -> list[Json]:
    """Tiers as the price object shows them: the last has no upper end."""
    tiers = []
    for number, tier in enumerate(asked):
        flat, flat_decimal = amounts(tier, "flat_amount")
        unit, unit_decimal = amounts(tier, "unit_amount")
        is_last = number == len(asked) - 1
        if (tier["up_to"] == "inf") != is_last:
            raise invalid("The last tier, and no other, has `up_to=inf`.", param="tiers", is_stored=False)
        tiers.append(
            {
                "flat_amount": flat,
                "flat_amount_decimal": flat_decimal,
                "unit_amount": unit,
                "unit_amount_decimal": unit_decimal,
                "up_to": None if is_last else tier["up_to"],
            }
        )
    return tiers


def _claim_lookup_key(account: Account, asked: Json) -> None:
    """One price per lookup key; `transfer_lookup_key` takes it from its holder."""
    key = asked.get("lookup_key")
    for price in account.all("price"):
        if key is None or price["lookup_key"] != key:
            continue
        if not asked.get("transfer_lookup_key"):
            raise invalid(f"A price (`{price['id']}`) already uses that lookup key.", param="lookup_key")
        price["lookup_key"] = None
        account.emit("price.updated", price, {"lookup_key": key})


def retrieve_price(account: Account, call: Call) -> Json:
    """GET /v1/prices/{price}"""
    return account.get("price", call.id)


def change_price(account: Account, call: Call) -> Json:
    """POST /v1/prices/{price}; amounts are immutable, because their parameters do not exist here."""
    price = account.get("price", call.id)
    if call.parameters.get("lookup_key") not in (None, price["lookup_key"]):
        _claim_lookup_key(account, call.parameters)
    previous = update(price, call, "active lookup_key metadata nickname tax_behavior")
    if previous:
        account.emit("price.updated", price, previous)
    return price


def list_prices(account: Account, call: Call) -> Json:
    """GET /v1/prices"""
    asked = call.parameters

    def is_wanted(price: Json) -> bool:
        recurring = asked.get("recurring", {})
        return (
            asked.get("active") in (None, price["active"])
            and asked.get("currency") in (None, price["currency"])
            and asked.get("product") in (None, price["product"])
            and asked.get("type") in (None, price["type"])
            and ("lookup_keys" not in asked or price["lookup_key"] in asked["lookup_keys"])
            and all((price["recurring"] or {}).get(name) == value for name, value in recurring.items())
        )

    return page(call, filter(is_wanted, newest_first(account, "price", call)))


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/products", create_product, PRODUCT_FIELDS + " id"),
    route("GET", "/v1/products", list_products, "active created ids"),
    route("GET", "/v1/products/{id}", retrieve_product),
    route("POST", "/v1/products/{id}", change_product, PRODUCT_FIELDS),
    route("DELETE", "/v1/products/{id}", delete_product),
    route("POST", "/v1/prices", create_price, PRICE_FIELDS),
    route("GET", "/v1/prices", list_prices, "active created currency lookup_keys product recurring type"),
    route("GET", "/v1/prices/{price}", retrieve_price),
    route(
        "POST",
        "/v1/prices/{price}",
        change_price,
        "active lookup_key metadata nickname tax_behavior transfer_lookup_key",
    ),
)
