"""What Weir asks of Stripe, as a port, and Stripe's answers as values: no SDK, no HTTP.

Instants of Stripe's are unix seconds (`_s`), as it gives them. Money in minor units stays with Stripe: nothing here is
an amount of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from billing.stripe_sync.payments import PaymentsPort
from billing.stripe_sync.retry import Answer


@dataclass(frozen=True, slots=True)
class Meter:
    """A billing meter; `window` is None for one that counts every event."""

    id: str
    event_name: str
    is_active: bool
    formula: str
    customer_key: str
    value_key: str
    window: str | None


@dataclass(frozen=True, slots=True)
class Product:
    """A product; `weir` is our mark in its metadata, "" without one."""

    id: str
    is_active: bool
    weir: str


@dataclass(frozen=True, slots=True)
class Price:
    """A price; the amount is in the currency's minor unit, a plain decimal text ("" for a tiered one)."""

    id: str
    product_id: str
    is_active: bool
    currency: str
    unit_amount: str
    interval: str
    interval_count: int
    meter_id: str
    has_transform: bool
    weir: str


@dataclass(frozen=True, slots=True)
class StripeCustomer:
    """A customer at Stripe; a deleted one is still found, and says so. Its `currency` is "" before it has one."""

    id: str
    is_deleted: bool
    weir_customer: str
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """A subscription's item: its price, the meter that it bills ("" if none), its period in unix seconds."""

    price_id: str
    meter_id: str
    period_start_s: int
    period_end_s: int
    id: str = ""
    created_s: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription and its items."""

    id: str
    status: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice, as far as dunning needs it; instants in unix seconds."""

    id: str
    attempt_count: int
    amount_remaining: int
    due_at_s: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What Stripe counted on a meter for a customer in [start, end)."""

    start_s: int
    end_s: int
    units: int


@dataclass(frozen=True, slots=True)
class MeteredLine:
    """A line of an invoice: the price, the quantity that it bills, and its period in unix seconds."""

    price_id: str
    units: int
    period_start_s: int
    period_end_s: int


@dataclass(frozen=True, slots=True)
class MeteredInvoice:
    """An invoice of a subscription with its lines; `finalized_at_s` is None while it is a draft."""

    id: str
    customer_id: str
    subscription_id: str
    status: str
    finalized_at_s: int | None
    period_end_s: int
    lines: tuple[MeteredLine, ...]


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """One event for the stream; the time is in unix seconds."""

    event_name: str
    customer_id: str
    units: int
    timestamp_s: int
    identifier: str


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """A meter's error report: how many events were invalid, and the identifiers that it samples, with their codes."""

    error_count: int
    samples: tuple[tuple[str, str], ...]
    text: str


class StripePort(Protocol):
    """What Weir asks of Stripe. `find_*` give None for what is missing.

    Every method raises StripeError, but for `send`, `stream` and `cancel`.
    """

    @property
    def payments(self) -> PaymentsPort:
        """What it asks about payments for credit."""

    def send(
        self, event_name: str, customer_id: str, units: int, timestamp_s: int, identifier: str, key: str
    ) -> Answer:
        """Send one meter event, once, under an Idempotency-Key; never raises for what Stripe or the network does."""

    def meters(self) -> list[Meter]:
        """List every meter, active or not."""

    def create_meter(self, event_name: str, display_name: str, key: str) -> Meter:
        """Create a meter that sums values."""

    def reactivate_meter(self, meter_id: str) -> Meter:
        """Let a deactivated meter take events again."""

    def products(self) -> list[Product]:
        """List the active products."""

    def find_product(self, product_id: str) -> Product | None:
        """Retrieve a product, active or archived."""

    def reactivate_product(self, product_id: str) -> Product:
        """Unarchive a product."""

    def create_product(self, name: str, unit_label: str, weir: str, key: str) -> Product:
        """Create a product with our mark."""

    def find_price(self, lookup_key: str) -> Price | None:
        """Find the price that holds a lookup key, active or not."""

    def create_price(self, price: Price, lookup_key: str, key: str) -> Price:
        """Create the monthly metered price that `price` describes; its id and activity are ignored."""

    def reactivate_price(self, price_id: str) -> Price:
        """Unarchive a price."""

    def find_customer(self, customer_id: str) -> StripeCustomer | None:
        """Retrieve a customer, deleted or not."""

    def create_customer(self, name: str, email: str | None, weir_customer: str, key: str) -> StripeCustomer:
        """Create a customer with our id in its metadata."""

    def find_subscription(self, subscription_id: str) -> Subscription | None:
        """Retrieve a subscription, ended or not."""

    def subscriptions(self, customer_id: str) -> list[Subscription]:
        """List a customer's subscriptions that have not ended."""

    def create_subscription(self, customer_id: str, price_id: str, weir_customer: str, key: str) -> Subscription:
        """Subscribe a customer to the metered price from now on, in calendar months of UTC."""

    def items(self, subscription_id: str) -> list[Item]:
        """List all items of a subscription."""

    def add_item(self, subscription_id: str, price_id: str, key: str) -> Item:
        """Let a subscription bill one more metered price, from now on."""

    def remove_item(self, item_id: str) -> None:
        """Let a subscription bill a metered price no longer."""

    def open_invoices(self, customer_id: str) -> list[Invoice]:
        """List the invoices that are finalized and neither paid, void nor written off."""

    def summaries(self, meter_id: str, customer_id: str, start_s: int, end_s: int) -> list[Summary]:
        """List a meter's hourly totals, oldest first; start and end are whole hours."""

    def error_report(self, event_id: str) -> ErrorReport:
        """Fetch what a thin event about invalid meter events says."""

    def stream(self, events: Sequence[MeterEvent], key: str) -> Answer:
        """Send up to 100 meter events in one call that Stripe judges afterwards; never raises, as `send`."""

    def cancel(self, event_name: str, identifier: str, key: str) -> Answer:
        """Take back the event that Stripe received under this identifier within 24 hours; never raises."""

    def metered_invoices(self, customer_id: str, since_s: int) -> list[MeteredInvoice]:
        """List a customer's invoices that were made since then, oldest first, drafts included."""
