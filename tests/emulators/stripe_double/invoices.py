"""Invoices: drafts whose lines follow the meter, finalization that freezes them, payment, voiding.

Documented: since basil an invoice names its subscription in `parent.subscription_details`; the customer's
balance and then the minimum charge are applied at finalization, and what is too small to charge is carried on
that balance; only a draft is finalized, only an open invoice paid, voided or given up; voiding returns
applied credits.
"""

from __future__ import annotations

from . import grants, payments, subscriptions
from .account import Account, Json, LineSource
from .errors import invalid
from .lines import lines_of
from .listing import newest_first, page, update
from .routing import Call, Route, route

EMPTY = (
    "account_name account_tax_ids application automatically_finalizes_at custom_fields customer_address"
    " customer_shipping default_payment_method default_source description due_date effective_at"
    " ending_balance footer from_invoice hosted_invoice_url invoice_pdf last_finalization_error"
    " latest_revision next_payment_attempt number on_behalf_of receipt_number rendering shipping_cost"
    " shipping_details statement_descriptor test_clock webhooks_delivered_at"
)
"""Fields of an invoice that begin as null."""


def draft(account: Account, subscription: Json, sources: list[LineSource], reason: str, start: int, end: int) -> Json:
    """A new draft for a subscription; tells the endpoints `invoice.created`."""
    invoice = _document(account, subscription, reason, start, end)
    is_cycle = reason == "subscription_cycle"
    invoice["auto_advance"] = subscription["status"] != "unpaid"
    if is_cycle and invoice["auto_advance"]:
        invoice["automatically_finalizes_at"] = account.now() + account.policy.finalization_grace_s
    account.add(invoice)
    account.drafts[invoice["id"]] = sources
    refresh(account, invoice)
    subscription["latest_invoice"] = invoice["id"]
    account.emit("invoice.created", invoice)
    return invoice


def preview(account: Account, subscription: Json) -> Json:
    """What the running period would cost if it ended now; nothing is stored."""
    item = subscription["items"]["data"][0]
    period_end = item["current_period_end"]
    invoice = _document(account, subscription, "upcoming", item["current_period_start"], period_end)
    invoice["id"] = account.new_id("upcoming_in")
    _fill(account, invoice, subscriptions.line_sources(account, subscription, period_end))
    return invoice


def _document(account: Account, subscription: Json, reason: str, start: int, end: int) -> Json:
    customer = account.objects["customer"].get(subscription["customer"], {})
    invoice_id = account.new_id("in")
    return {
        "id": invoice_id,
        "object": "invoice",
        **dict.fromkeys(EMPTY.split()),
        "account_country": "US",
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "billing_reason": reason,
        "collection_method": subscription["collection_method"],
        "created": account.now(),
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "customer_phone": customer.get("phone"),
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "lines": {"object": "list", "data": [], "has_more": False, "url": f"/v1/invoices/{invoice_id}/lines"},
        "livemode": False,
        "metadata": {},
        "parent": {
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(subscription["metadata"]),
                "subscription": subscription["id"],
            },
            "type": "subscription_details",
        },
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": end,
        "period_start": start,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    }


def refresh(account: Account, invoice: Json) -> Json:
    """A draft's lines as the meter stands now; a finalized invoice is left as it is."""
    if invoice["status"] == "draft" and invoice["id"] in account.drafts:
        _fill(account, invoice, account.drafts[invoice["id"]])
    return invoice


def _fill(account: Account, invoice: Json, sources: list[LineSource]) -> None:
    customer = account.objects["customer"].get(invoice["customer"])
    lines = lines_of(account, invoice, sources)
    for line, known in zip(lines, invoice["lines"]["data"], strict=False):
        line["id"] = known["id"]
    invoice["lines"]["data"] = lines
    invoice["starting_balance"] = customer["balance"] if customer else 0
    _set_total(account, invoice, sum(line["amount"] for line in lines), 0)


def _set_total(account: Account, invoice: Json, subtotal: int, credited: int) -> None:
    """Totals, and what is due: balance first, then the minimum charge."""
    total = subtotal - credited
    invoice["subtotal"] = invoice["subtotal_excluding_tax"] = subtotal
    invoice["total"] = invoice["total_excluding_tax"] = total
    wanted = total + invoice["starting_balance"]
    is_charged = wanted >= account.policy.charge_minimum
    invoice["amount_due"] = invoice["amount_remaining"] = wanted if is_charged else 0
    invoice["ending_balance"] = None if invoice["status"] == "draft" else (0 if is_charged else wanted)


def finalize(account: Account, invoice: Json) -> Json:
    """Freezes the lines, applies credits and balance, and charges what is due."""
    refresh(account, invoice)
    account.drafts.pop(invoice["id"], None)
    customer = account.objects["customer"].get(invoice["customer"])
    invoice["status"] = "open"
    invoice["status_transitions"]["finalized_at"] = account.now()
    invoice["effective_at"] = account.now()
    invoice["automatically_finalizes_at"] = None
    invoice["webhooks_delivered_at"] = account.now()
    credited = grants.apply(account, invoice)
    _set_total(account, invoice, invoice["subtotal"], credited)
    if customer is not None:
        invoice["number"] = f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04d}"
        customer["next_invoice_sequence"] += 1
        _move_balance(account, customer, invoice["ending_balance"])
    account.emit("invoice.finalized", invoice)
    if invoice["amount_due"] == 0:
        payments.settle(account, invoice, None)
    elif invoice["collection_method"] == "charge_automatically":
        payments.attempt(account, invoice)
    else:
        invoice["due_date"] = account.now() + (_days_until_due(account, invoice) * 86_400)
    return invoice


def _days_until_due(account: Account, invoice: Json) -> int:
    subscription = account.get("subscription", invoice["parent"]["subscription_details"]["subscription"])
    days: int = subscription["days_until_due"] or 30
    return days


def _move_balance(account: Account, customer: Json, balance: int) -> None:
    if customer["balance"] != balance:
        previous = {"balance": customer["balance"]}
        customer["balance"] = balance
        account.emit("customer.updated", customer, previous)


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/invoices/{invoice}"""
    return refresh(account, account.get("invoice", call.id))


def listed(account: Account, call: Call) -> Json:
    """GET /v1/invoices"""
    asked = call.parameters

    def is_wanted(invoice: Json) -> bool:
        subscription = invoice["parent"]["subscription_details"]["subscription"]
        return (
            asked.get("customer") in (None, invoice["customer"])
            and asked.get("status") in (None, invoice["status"])
            and asked.get("subscription") in (None, subscription)
        )

    found = filter(is_wanted, newest_first(account, "invoice", call))
    return page(call, (refresh(account, invoice) for invoice in found))


def list_lines(account: Account, call: Call) -> Json:
    """GET /v1/invoices/{invoice}/lines"""
    return page(call, refresh(account, account.get("invoice", call.id))["lines"]["data"])


def change(account: Account, call: Call) -> Json:
    """POST /v1/invoices/{invoice}"""
    invoice = account.get("invoice", call.id)
    previous = update(invoice, call, "metadata description auto_advance")
    if previous:
        account.emit("invoice.updated", refresh(account, invoice), previous)
    return invoice


def finalize_call(account: Account, call: Call) -> Json:
    """POST /v1/invoices/{invoice}/finalize"""
    invoice = account.get("invoice", call.id)
    if invoice["status"] != "draft":
        raise invalid(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            code="invoice_not_editable",
        )
    return finalize(account, invoice)


def pay(account: Account, call: Call) -> Json:
    """POST /v1/invoices/{invoice}/pay; a declined payment is 402. A draft is finalized first."""
    invoice = account.get("invoice", call.id)
    if invoice["status"] == "draft":
        finalize(account, invoice)
    if invoice["status"] == "paid":
        raise invalid("Invoice is already paid", code="invoice_already_paid")
    _require_open(invoice, "pay")
    if call.parameters.get("paid_out_of_band"):
        invoice["amount_paid_off_stripe"] = invoice["amount_due"]
        payments.settle(account, invoice, None)
    elif not payments.attempt(account, invoice):
        raise payments.declined()
    return invoice


def _require_open(invoice: Json, verb: str) -> None:
    if invoice["status"] not in ("open", "uncollectible"):
        raise invalid(
            f"You can only {verb} an open invoice; this one is {invoice['status']}.",
            code="invoice_not_editable",
        )


def void(account: Account, call: Call) -> Json:
    """POST /v1/invoices/{invoice}/void: never due again; applied credits return."""
    invoice = account.get("invoice", call.id)
    _require_open(invoice, "void")
    invoice["status"] = "void"
    invoice["status_transitions"]["voided_at"] = account.now()
    invoice["next_payment_attempt"] = None
    grants.reinstate(account, invoice)
    account.emit("invoice.voided", invoice)
    return invoice


def give_up(account: Account, call: Call) -> Json:
    """POST /v1/invoices/{invoice}/mark_uncollectible"""
    invoice = account.get("invoice", call.id)
    _require_open(invoice, "mark as uncollectible")
    invoice["status"] = "uncollectible"
    invoice["status_transitions"]["marked_uncollectible_at"] = account.now()
    invoice["next_payment_attempt"] = None
    account.emit("invoice.marked_uncollectible", invoice)
    return invoice


def create_preview(account: Account, call: Call) -> Json:
    """POST /v1/invoices/create_preview for an existing subscription."""
    asked = call.parameters
    if "subscription" in asked:
        return preview(account, account.get("subscription", asked["subscription"], param="subscription"))
    account.get("customer", asked.get("customer", ""), param="customer")
    found = [
        each
        for each in account.all("subscription")
        if each["customer"] == asked["customer"] and each["status"] not in subscriptions.ENDED
    ]
    if not found:
        raise invalid(
            "No upcoming invoices for customer: " + asked["customer"],
            code="invoice_upcoming_none",
            status=404,
        )
    return preview(account, found[-1])


ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/invoices", listed, "customer status subscription created"),
    route("GET", "/v1/invoices/{invoice}", retrieve),
    route("POST", "/v1/invoices/{invoice}", change, "metadata description auto_advance"),
    route("GET", "/v1/invoices/{invoice}/lines", list_lines),
    route("POST", "/v1/invoices/{invoice}/finalize", finalize_call),
    route("POST", "/v1/invoices/{invoice}/pay", pay, "paid_out_of_band"),
    route("POST", "/v1/invoices/{invoice}/void", void),
    route("POST", "/v1/invoices/{invoice}/mark_uncollectible", give_up),
    route("POST", "/v1/invoices/create_preview", create_preview, "customer subscription"),
)
