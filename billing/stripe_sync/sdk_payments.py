"""`PaymentsPort` over the official SDK.

Invariant: what takes money is sent under an Idempotency-Key that was stored with the top-up, so that a repetition takes
nothing twice. The `off_session` payment follows https://docs.stripe.com/payments/save-and-reuse.
"""

from typing import TYPE_CHECKING

import stripe

from billing.stripe_sync.payments import (
    Bill,
    BilledInvoice,
    BilledLine,
    Charge,
    Checkout,
    Declined,
    Dispute,
    Intent,
    Payer,
    Refund,
)
from billing.stripe_sync.sdk import PAGE_ROWS, answer, asked, found_or_none, id_of, listed, mark, stripe_error

if TYPE_CHECKING:
    from stripe.params.checkout import SessionCreateParams

PRODUCT_NAME = "Prepaid credit"

# https://docs.stripe.com/declines/codes: asks for the holder, or says that this card will never do.
_FINAL_CODES = frozenset(
    (
        *("authentication_required", "authentication_not_handled", "expired_card", "lost_card", "stolen_card"),
        *("pickup_card", "restricted_card", "card_not_supported", "currency_not_supported", "fraudulent"),
        *(
            "incorrect_number",
            "invalid_account",
            "payment_method_not_available",
            "payment_intent_authentication_failure",
        ),
    )
)


class SdkPayments:
    """`PaymentsPort` over the official SDK; safe to use from several threads."""

    def __init__(self, client: stripe.StripeClient) -> None:
        self._v1 = client.v1

    def create_checkout(self, bill: Bill, payer: Payer, return_url: str, key: str, *, is_saved: bool) -> Checkout:
        """See PaymentsPort."""
        marks = _marks(bill)
        params: SessionCreateParams = {
            "mode": "payment",
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": bill.currency,
                        "unit_amount": bill.amount,
                        "product_data": {"name": PRODUCT_NAME},
                    },
                }
            ],
            "metadata": marks,
            "payment_intent_data": {"metadata": marks},
            "success_url": return_url,
        }
        if is_saved:
            params["payment_intent_data"] = {"metadata": marks, "setup_future_usage": "off_session"}
        if payer.stripe_customer_id is not None:
            params["customer"] = payer.stripe_customer_id
        else:
            params["customer_creation"] = "always"
            if payer.email is not None:
                params["customer_email"] = payer.email
        return _checkout(asked(lambda: self._v1.checkout.sessions.create(params, {"idempotency_key": key})))

    def find_checkout(self, session_id: str) -> Checkout | None:
        """See PaymentsPort."""
        row = found_or_none(lambda: self._v1.checkout.sessions.retrieve(session_id))
        return None if row is None else _checkout(row)

    def charges(self, intent_id: str) -> list[Charge]:
        """See PaymentsPort."""
        return listed(lambda: self._v1.charges.list({"payment_intent": intent_id, "limit": PAGE_ROWS}), _charge)

    def find_charge(self, charge_id: str) -> Charge | None:
        """See PaymentsPort."""
        row = found_or_none(lambda: self._v1.charges.retrieve(charge_id))
        return None if row is None else _charge(row)

    def refunds(self, charge_id: str) -> list[Refund]:
        """See PaymentsPort."""
        return listed(lambda: self._v1.refunds.list({"charge": charge_id, "limit": PAGE_ROWS}), _refund)

    def find_refunded_intent(self, refund_id: str) -> str | None:
        """See PaymentsPort."""
        row = found_or_none(lambda: self._v1.refunds.retrieve(refund_id))
        return None if row is None or row.payment_intent is None else id_of(row.payment_intent)

    def disputes(self, charge_id: str) -> list[Dispute]:
        """See PaymentsPort."""
        return listed(lambda: self._v1.disputes.list({"charge": charge_id, "limit": PAGE_ROWS}), _dispute)

    def find_dispute(self, dispute_id: str) -> Dispute | None:
        """See PaymentsPort."""
        row = found_or_none(lambda: self._v1.disputes.retrieve(dispute_id))
        return None if row is None else _dispute(row)

    def charge_saved(self, bill: Bill, stripe_customer_id: str, payment_method_id: str, key: str) -> Intent | Declined:
        """See PaymentsPort."""
        try:
            row = self._v1.payment_intents.create(
                {
                    "amount": bill.amount,
                    "currency": bill.currency,
                    "customer": stripe_customer_id,
                    "payment_method": payment_method_id,
                    "off_session": True,
                    "confirm": True,
                    "metadata": _marks(bill),
                },
                {"idempotency_key": key},
            )
        except stripe.CardError as error:
            return _declined(error)
        except stripe.StripeError as error:
            raise stripe_error(error) from None
        return _intent(row)

    def intents(self, stripe_customer_id: str, since_s: int) -> list[Intent]:
        """See PaymentsPort."""
        return listed(
            lambda: self._v1.payment_intents.list(
                {"customer": stripe_customer_id, "created": {"gte": since_s}, "limit": PAGE_ROWS}
            ),
            _intent,
        )

    def find_payer_of(self, kind: str, object_id: str) -> str | None:
        """See PaymentsPort."""
        retrieve = {"invoice": self._v1.invoices.retrieve, "customer.subscription": self._v1.subscriptions.retrieve}
        row = found_or_none(lambda: retrieve[kind](object_id)) if kind in retrieve else None
        return None if row is None or row.customer is None else id_of(row.customer)

    def preview(self, stripe_customer_id: str, subscription_id: str) -> BilledInvoice:
        """See PaymentsPort."""
        row = asked(
            lambda: self._v1.invoices.create_preview({"customer": stripe_customer_id, "subscription": subscription_id})
        )
        return _billed(row, list(row.lines.data))

    def find_invoice(self, invoice_id: str) -> BilledInvoice | None:
        """See PaymentsPort."""
        row = found_or_none(lambda: self._v1.invoices.retrieve(invoice_id))
        if row is None:
            return None
        if not row.lines.has_more:
            return _billed(row, list(row.lines.data))
        return _billed(row, listed(lambda: self._v1.invoices.line_items.list(row.id, {"limit": PAGE_ROWS}), _same))

    def cancel_subscription(self, subscription_id: str, key: str) -> None:
        """See PaymentsPort."""
        asked(
            lambda: self._v1.subscriptions.cancel(
                subscription_id, {"invoice_now": True, "prorate": False}, {"idempotency_key": key}
            )
        )


def _same(row: stripe.InvoiceLineItem) -> stripe.InvoiceLineItem:
    return row


def _billed(row: stripe.Invoice, lines: list[stripe.InvoiceLineItem]) -> BilledInvoice:
    return BilledInvoice(
        id=getattr(row, "id", None) or "",
        status=str(row.status),
        stripe_customer_id="" if row.customer is None else id_of(row.customer),
        currency=row.currency,
        total=row.total,
        lines=tuple(_billed_line(each) for each in lines),
    )


def _billed_line(row: stripe.InvoiceLineItem) -> BilledLine:
    details = None if row.pricing is None else row.pricing.price_details
    return BilledLine(
        price_id="" if details is None else id_of(details.price),
        units=row.quantity or 0,
        amount=row.amount,
        period_start_s=row.period.start,
        period_end_s=row.period.end,
        text=row.description or "",
    )


def _marks(bill: Bill) -> dict[str, str]:
    return {"weir_customer": bill.customer_id, "weir_topup": bill.topup_id}


def _maybe_id(value: object) -> str | None:
    return None if value is None else id_of(value)


def _checkout(row: stripe.checkout.Session) -> Checkout:
    return Checkout(
        id=row.id,
        url=row.url,
        status=str(row.status),
        payment_status=str(row.payment_status),
        amount=row.amount_total or 0,
        currency=row.currency or "",
        intent_id=_maybe_id(row.payment_intent),
        stripe_customer_id=_maybe_id(row.customer),
        topup_id=mark(row.metadata, "weir_topup"),
        customer_id=mark(row.metadata, "weir_customer"),
        expires_at_s=row.expires_at,
    )


def _charge(row: stripe.Charge) -> Charge:
    return Charge(
        id=row.id,
        status=str(row.status),
        amount=row.amount_captured if row.captured else 0,
        currency=row.currency,
        intent_id=_maybe_id(row.payment_intent),
        stripe_customer_id=_maybe_id(row.customer),
        payment_method_id=row.payment_method,
        has_refunds=row.amount_refunded > 0,
        is_disputed=row.disputed,
        failure=row.failure_code or "",
    )


def _refund(row: stripe.Refund) -> Refund:
    return Refund(str(row.status), row.amount)


def _dispute(row: stripe.Dispute) -> Dispute:
    return Dispute(row.id, str(row.status), row.amount, row.currency, id_of(row.charge))


def _intent(row: stripe.PaymentIntent) -> Intent:
    return Intent(row.id, str(row.status), mark(row.metadata, "weir_topup"))


def _declined(error: stripe.CardError) -> Declined:
    said = answer(error)
    made = getattr(error.error, "payment_intent", None)
    codes = {said.code, str(getattr(error.error, "decline_code", None) or "")}
    return Declined(said.text, not codes.isdisjoint(_FINAL_CODES), None if made is None else id_of(made))
