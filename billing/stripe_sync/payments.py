"""What Weir asks of Stripe about payments for credit, as a port, and the answers as values: no SDK, no HTTP.

Amounts are in the currency's minor unit, instants unix seconds (`_s`), as Stripe gives them.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Bill:
    """A payment that is asked for: how much, for which top-up of which customer of ours."""

    topup_id: str
    customer_id: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Payer:
    """Who pays on Stripe's page: a customer of Stripe's, or nobody it knows, perhaps with an address."""

    stripe_customer_id: str | None
    email: str | None


@dataclass(frozen=True, slots=True)
class Checkout:
    """A Checkout session; `topup_id` and `customer_id` are our marks in it, "" without them."""

    id: str
    url: str | None
    status: str
    payment_status: str
    amount: int
    currency: str
    intent_id: str | None
    stripe_customer_id: str | None
    topup_id: str
    customer_id: str
    expires_at_s: int


@dataclass(frozen=True, slots=True)
class Charge:
    """One attempt to take money for a payment intent; `amount` was taken if it succeeded."""

    id: str
    status: str
    amount: int
    currency: str
    intent_id: str | None
    stripe_customer_id: str | None
    payment_method_id: str | None
    has_refunds: bool
    is_disputed: bool
    failure: str


@dataclass(frozen=True, slots=True)
class Refund:
    """Money that goes back to the payer."""

    status: str
    amount: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """A payment that its cardholder disputes."""

    id: str
    status: str
    amount: int
    currency: str
    charge_id: str


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment intent, and our mark in it."""

    id: str
    status: str
    topup_id: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The card was declined; `is_final` where another attempt can not succeed without its holder."""

    text: str
    is_final: bool
    intent_id: str | None


@dataclass(frozen=True, slots=True)
class BilledLine:
    """A line of an invoice; `units` is its whole quantity, `price_id` "" for a plain amount."""

    price_id: str
    units: int
    amount: int
    period_start_s: int
    period_end_s: int
    text: str


@dataclass(frozen=True, slots=True)
class BilledInvoice:
    """An invoice, or the preview of one, with its lines."""

    id: str
    status: str
    stripe_customer_id: str
    currency: str
    total: int
    lines: tuple[BilledLine, ...]


class PaymentsPort(Protocol):
    """What Weir asks of Stripe about payments. Every method raises StripeError; `find_*` give None for the missing."""

    def create_checkout(self, bill: Bill, payer: Payer, return_url: str, key: str, *, is_saved: bool) -> Checkout:
        """Make a page where a payment is made, once; `is_saved` keeps the card for automatic top-ups."""

    def find_checkout(self, session_id: str) -> Checkout | None:
        """Retrieve a Checkout session."""

    def charges(self, intent_id: str) -> list[Charge]:
        """List the attempts of a payment intent, newest first."""

    def find_charge(self, charge_id: str) -> Charge | None:
        """Retrieve a charge."""

    def refunds(self, charge_id: str) -> list[Refund]:
        """List what went back of a charge."""

    def find_refunded_intent(self, refund_id: str) -> str | None:
        """Return the payment intent that a refund is of."""

    def disputes(self, charge_id: str) -> list[Dispute]:
        """List the disputes of a charge."""

    def find_dispute(self, dispute_id: str) -> Dispute | None:
        """Retrieve a dispute."""

    def charge_saved(self, bill: Bill, stripe_customer_id: str, payment_method_id: str, key: str) -> Intent | Declined:
        """Charge a saved card while its holder is away, once under a key."""

    def intents(self, stripe_customer_id: str, since_s: int) -> list[Intent]:
        """List a customer's payment intents made since an instant."""

    def find_payer_of(self, kind: str, object_id: str) -> str | None:
        """Return the customer of an invoice or a subscription."""

    def preview(self, stripe_customer_id: str, subscription_id: str) -> BilledInvoice:
        """Ask what the running period of a subscription would cost if it ended now; nothing is stored."""

    def find_invoice(self, invoice_id: str) -> BilledInvoice | None:
        """Retrieve an invoice with all its lines."""

    def cancel_subscription(self, subscription_id: str, key: str) -> None:
        """End a subscription now, and invoice what it has not invoiced yet."""
