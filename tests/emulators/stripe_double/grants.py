"""Billing credit grants: granted, applied to metered lines when an invoice is finalized, expired, voided.

Documented: at most 100 unused grants per customer; order by priority, earliest expiry, promotional first,
effective date, creation; only a grant that was never applied can be voided; voiding an invoice returns what
it used. Grants with a list of prices apply to those prices only. The ledger is a list of balance
transactions, summed when asked.
"""

from __future__ import annotations

from .account import Account, Json
from .errors import invalid
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route

UNUSED_MAX = 100
PRIORITY_DEFAULT = 50


def create(account: Account, call: Call) -> Json:
    """POST /v1/billing/credit_grants"""
    asked = call.parameters
    customer = account.get("customer", asked.get("customer", ""), param="customer")
    unused = [
        each
        for each in account.all("billing.credit_grant")
        if each["customer"] == customer["id"] and not is_used(account, each)
    ]
    if len(unused) >= UNUSED_MAX:
        raise invalid(f"A customer can have at most {UNUSED_MAX} unused credit grants.", param="customer")
    amount = asked["amount"].get("monetary")
    if amount is None or amount["value"] <= 0:
        raise invalid("`amount[monetary][value]` must be positive.", param="amount", is_stored=False)
    scope = asked["applicability_config"]["scope"]
    if ("price_type" in scope) == ("prices" in scope):
        raise invalid("Specify either `price_type` or `prices`.", param="applicability_config", is_stored=False)
    if not 0 <= asked.get("priority", PRIORITY_DEFAULT) <= 100:
        raise invalid("`priority` is between 0 and 100.", param="priority", is_stored=False)
    grant: Json = {
        "id": account.new_id("credgr"),
        "object": "billing.credit_grant",
        "amount": {"monetary": amount, "type": "monetary"},
        "applicability_config": asked["applicability_config"],
        "category": asked.get("category", "paid"),
        "created": account.now(),
        "customer": customer["id"],
        "customer_account": None,
        "effective_at": asked.get("effective_at", account.now()),
        "expires_at": asked.get("expires_at"),
        "livemode": False,
        "metadata": merge_metadata({}, asked.get("metadata")),
        "name": asked.get("name"),
        "priority": asked.get("priority", PRIORITY_DEFAULT),
        "test_clock": None,
        "updated": account.now(),
        "voided_at": None,
    }
    account.add(grant)
    account.emit("billing.credit_grant.created", grant)
    _book(account, grant, "credit", "credits_granted", amount["value"], None)
    return grant


def _book(account: Account, grant: Json, side: str, kind: str, value: int, details: Json | None) -> Json:
    """One balance transaction; `details` names the invoice that credits were applied to or returned from."""
    amount = {
        "monetary": {"currency": grant["amount"]["monetary"]["currency"], "value": value},
        "type": "monetary",
    }
    nested = "credits_applied" if side == "debit" else "credits_application_invoice_voided"
    entry: Json = {
        "id": account.new_id("cbtxn"),
        "object": "billing.credit_balance_transaction",
        "created": account.now(),
        "credit": None,
        "credit_grant": grant["id"],
        "debit": None,
        "effective_at": account.now(),
        "livemode": False,
        "test_clock": None,
        "type": side,
    }
    entry[side] = {"amount": amount, nested: details, "type": kind}
    account.add(entry)
    account.emit("billing.credit_balance_transaction.created", entry)
    return entry


def remaining(account: Account, grant: Json) -> int:
    """What is left of a grant, in minor units."""
    total = 0
    for entry in account.all("billing.credit_balance_transaction"):
        if entry["credit_grant"] == grant["id"]:
            sign = 1 if entry["type"] == "credit" else -1
            total += sign * entry[entry["type"]]["amount"]["monetary"]["value"]
    return total


def is_used(account: Account, grant: Json) -> bool:
    """Whether something of it was applied, or nothing is left to apply."""
    granted: int = grant["amount"]["monetary"]["value"]
    return remaining(account, grant) != granted


def is_live(grant: Json, at: int) -> bool:
    """Effective, not expired and not voided at an instant."""
    is_expired = grant["expires_at"] is not None and at >= grant["expires_at"]
    is_begun: bool = grant["effective_at"] <= at
    return is_begun and not is_expired and grant["voided_at"] is None


def _order(grant: Json) -> tuple[int, int, bool, int, int]:
    far = 2**62
    return (
        grant["priority"],
        grant["expires_at"] or far,
        grant["category"] != "promotional",
        grant["effective_at"],
        grant["created"],
    )


def apply(account: Account, invoice: Json) -> int:
    """Uses credits for the invoice's metered lines; gives the sum and notes it on lines and invoice."""
    grants = sorted(
        (
            each
            for each in account.all("billing.credit_grant")
            if each["customer"] == invoice["customer"]
            and each["amount"]["monetary"]["currency"] == invoice["currency"]
            and is_live(each, invoice["period_end"])
        ),
        key=_order,
    )
    open_amounts = [_metered_amount(account, line) for line in invoice["lines"]["data"]]
    applied = 0
    for grant in grants:
        left = remaining(account, grant)
        for number, line in enumerate(invoice["lines"]["data"]):
            used = min(left, open_amounts[number]) if _covers(grant, line) else 0
            if used <= 0:
                continue
            details = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
            entry = _book(account, grant, "debit", "credits_applied", used, details)
            noted = {
                "amount": used,
                "credit_balance_transaction": entry["id"],
                "type": "credit_balance_transaction",
            }
            line["pretax_credit_amounts"].append(noted)
            invoice["total_pretax_credit_amounts"].append(dict(noted))
            left -= used
            open_amounts[number] -= used
            applied += used
    return applied


def _metered_amount(account: Account, line: Json) -> int:
    """The line's amount when a meter made it; licensed lines and plain amounts take no credit."""
    if line["pricing"] is None:
        return 0
    price = account.get("price", line["pricing"]["price_details"]["price"])
    is_metered = price["recurring"] is not None and price["recurring"]["meter"] is not None
    amount: int = line["amount"]
    return amount if is_metered else 0


def _covers(grant: Json, line: Json) -> bool:
    prices = grant["applicability_config"]["scope"].get("prices")
    if prices is None:
        return True
    return line["pricing"] is not None and {"id": line["pricing"]["price_details"]["price"]} in prices


def reinstate(account: Account, invoice: Json) -> None:
    """Returns what a voided invoice had used."""
    for line in invoice["lines"]["data"]:
        for noted in line["pretax_credit_amounts"]:
            entry = account.get("billing.credit_balance_transaction", noted["credit_balance_transaction"])
            grant = account.get("billing.credit_grant", entry["credit_grant"])
            details = {"invoice": invoice["id"], "invoice_line_item": line["id"]}
            _book(account, grant, "credit", "credits_application_invoice_voided", noted["amount"], details)


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/billing/credit_grants/{id}"""
    return account.get("billing.credit_grant", call.id)


def listed(account: Account, call: Call) -> Json:
    """GET /v1/billing/credit_grants"""
    customer = call.parameters.get("customer")
    found = newest_first(account, "billing.credit_grant", call)
    return page(call, (each for each in found if customer in (None, each["customer"])))


def change(account: Account, call: Call) -> Json:
    """POST /v1/billing/credit_grants/{id}"""
    grant = account.get("billing.credit_grant", call.id)
    return _touched(account, grant, update(grant, call, "expires_at metadata"))


def _touched(account: Account, grant: Json, previous: Json) -> Json:
    if previous:
        grant["updated"] = account.now()
        account.emit("billing.credit_grant.updated", grant, previous)
    return grant


def expire(account: Account, call: Call) -> Json:
    """POST /v1/billing/credit_grants/{id}/expire"""
    grant = account.get("billing.credit_grant", call.id)
    left = remaining(account, grant)
    previous = {"expires_at": grant["expires_at"]}
    grant["expires_at"] = account.now()
    if left > 0:
        _book(account, grant, "debit", "credits_expired", left, None)
    return _touched(account, grant, previous)


def void(account: Account, call: Call) -> Json:
    """POST /v1/billing/credit_grants/{id}/void; refused once something was applied."""
    grant = account.get("billing.credit_grant", call.id)
    if is_used(account, grant):
        raise invalid("This credit grant cannot be voided because it has been applied.")
    grant["voided_at"] = account.now()
    _book(account, grant, "debit", "credits_voided", remaining(account, grant), None)
    return _touched(account, grant, {"voided_at": None})


def summary(account: Account, call: Call) -> Json:
    """GET /v1/billing/credit_balance_summary of one customer, by scope or by grant."""
    asked = call.parameters
    customer = account.get("customer", asked.get("customer", ""), param="customer")
    only = asked["filter"].get("credit_grant")
    sums: dict[str, int] = {}
    for grant in account.all("billing.credit_grant"):
        if grant["customer"] == customer["id"] and only in (None, grant["id"]) and is_live(grant, account.now()):
            currency = grant["amount"]["monetary"]["currency"]
            sums[currency] = sums.get(currency, 0) + remaining(account, grant)
    balances = []
    for currency, value in sums.items():
        amount = {"monetary": {"currency": currency, "value": value}, "type": "monetary"}
        balances.append({"available_balance": amount, "ledger_balance": amount})
    return {
        "object": "billing.credit_balance_summary",
        "balances": balances,
        "customer": customer["id"],
        "customer_account": None,
        "livemode": False,
    }


def list_transactions(account: Account, call: Call) -> Json:
    """GET /v1/billing/credit_balance_transactions"""
    asked = call.parameters
    owners = {each["id"]: each["customer"] for each in account.all("billing.credit_grant")}
    return page(
        call,
        (
            each
            for each in newest_first(account, "billing.credit_balance_transaction", call)
            if asked.get("credit_grant") in (None, each["credit_grant"])
            and asked.get("customer") in (None, owners[each["credit_grant"]])
        ),
    )


ROUTES: tuple[Route, ...] = (
    route(
        "POST",
        "/v1/billing/credit_grants",
        create,
        "amount applicability_config category customer effective_at expires_at metadata name priority",
    ),
    route("GET", "/v1/billing/credit_grants", listed, "customer"),
    route("GET", "/v1/billing/credit_grants/{id}", retrieve),
    route("POST", "/v1/billing/credit_grants/{id}", change, "expires_at metadata"),
    route("POST", "/v1/billing/credit_grants/{id}/expire", expire),
    route("POST", "/v1/billing/credit_grants/{id}/void", void),
    route("GET", "/v1/billing/credit_balance_summary", summary, "customer filter"),
    route("GET", "/v1/billing/credit_balance_transactions", list_transactions, "customer credit_grant"),
)
