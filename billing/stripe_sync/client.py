"""The home of the `stripe` package, with `sdk` and `sdk_*`: `StripePort` over the official SDK.

Invariant: no object of the SDK leaves these files. Administrative calls are retried by the SDK (twice) and raise
StripeError, one line; a meter event is sent exactly once per call and its answer comes back as a `retry.Answer`,
whatever it was, because what may be sent again is the outbox's decision.

The SDK's telemetry is off: it would write an id into the home folder and send the platform's description.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import stripe

from billing.config import Config
from billing.errors import ConfigError, StripeError
from billing.stripe_sync.payments import PaymentsPort
from billing.stripe_sync.port import (
    ErrorReport,
    Invoice,
    Item,
    Meter,
    MeteredInvoice,
    MeterEvent,
    Price,
    Product,
    StripeCustomer,
    StripePort,
    Subscription,
    Summary,
)
from billing.stripe_sync.retry import Answer
from billing.stripe_sync.sdk import PAGE_ROWS, answer, asked, found_or_none, id_of, listed, mark, plain
from billing.stripe_sync.sdk_metered import SdkMetered
from billing.stripe_sync.sdk_payments import SdkPayments

if TYPE_CHECKING:
    from stripe.params import CustomerCreateParams, SubscriptionCreateParams

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
ADMIN_RETRIES_MAX = 2


def connect(config: Config) -> StripePort:
    """Return the SDK's client for the configured account. Raises ConfigError if Stripe is off or has no key."""
    if not config.stripe.enabled:
        raise ConfigError("Stripe is off: set stripe.enabled = true")
    if not config.stripe.api_key:
        raise ConfigError("no Stripe key: set STRIPE_API_KEY, or stripe.api_key")
    return SdkClient(config.stripe.api_key, config.stripe.api_base, config.stripe.meter_events_base)


class SdkClient:
    """`StripePort` over the official SDK; safe to use from several threads (a connection pool for each)."""

    def __init__(
        self,
        api_key: str,
        api_base: str,
        meter_events_base: str,
        timeouts_s: tuple[float, float] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    ) -> None:
        stripe.enable_telemetry = False
        self._client = stripe.StripeClient(
            api_key,
            base_addresses={"api": api_base, "meter_events": meter_events_base},
            max_network_retries=ADMIN_RETRIES_MAX,
            http_client=stripe.RequestsClient(timeout=timeouts_s),
        )
        self._v1 = self._client.v1
        self._payments = SdkPayments(self._client)
        self._metered = SdkMetered(self._client, meter_events_base, timeouts_s)

    @property
    def payments(self) -> PaymentsPort:
        """See StripePort."""
        return self._payments

    def send(
        self, event_name: str, customer_id: str, units: int, timestamp_s: int, identifier: str, key: str
    ) -> Answer:
        """See StripePort."""
        try:
            self._v1.billing.meter_events.create(
                {
                    "event_name": event_name,
                    "payload": {"stripe_customer_id": customer_id, "value": str(units)},
                    "identifier": identifier,
                    "timestamp": timestamp_s,
                },
                {"idempotency_key": key, "max_network_retries": 0},
            )
        except stripe.StripeError as error:
            return answer(error)
        return Answer(200)

    def stream(self, events: Sequence[MeterEvent], key: str) -> Answer:
        """See StripePort."""
        return self._metered.stream(events, key)

    def cancel(self, event_name: str, identifier: str, key: str) -> Answer:
        """See StripePort."""
        return self._metered.cancel(event_name, identifier, key)

    def metered_invoices(self, customer_id: str, since_s: int) -> list[MeteredInvoice]:
        """See StripePort."""
        return self._metered.invoices(customer_id, since_s)

    def meters(self) -> list[Meter]:
        """See StripePort."""
        return listed(lambda: self._v1.billing.meters.list({"limit": PAGE_ROWS}), _meter)

    def create_meter(self, event_name: str, display_name: str, key: str) -> Meter:
        """See StripePort."""
        return _meter(
            asked(
                lambda: self._v1.billing.meters.create(
                    {
                        "display_name": display_name,
                        "event_name": event_name,
                        "default_aggregation": {"formula": "sum"},
                        "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
                        "value_settings": {"event_payload_key": "value"},
                    },
                    {"idempotency_key": key},
                )
            )
        )

    def reactivate_meter(self, meter_id: str) -> Meter:
        """See StripePort."""
        return _meter(asked(lambda: self._v1.billing.meters.reactivate(meter_id)))

    def products(self) -> list[Product]:
        """See StripePort."""
        return listed(lambda: self._v1.products.list({"active": True, "limit": PAGE_ROWS}), _product)

    def find_product(self, product_id: str) -> Product | None:
        """See StripePort."""
        found = found_or_none(lambda: self._v1.products.retrieve(product_id))
        return None if found is None else _product(found)

    def reactivate_product(self, product_id: str) -> Product:
        """See StripePort."""
        return _product(asked(lambda: self._v1.products.update(product_id, {"active": True})))

    def create_product(self, name: str, unit_label: str, weir: str, key: str) -> Product:
        """See StripePort."""
        return _product(
            asked(
                lambda: self._v1.products.create(
                    {"name": name, "unit_label": unit_label, "metadata": {"weir": weir}},
                    {"idempotency_key": key},
                )
            )
        )

    def find_price(self, lookup_key: str) -> Price | None:
        """See StripePort."""
        found = listed(lambda: self._v1.prices.list({"lookup_keys": [lookup_key], "limit": PAGE_ROWS}), _price)
        return found[0] if found else None

    def create_price(self, price: Price, lookup_key: str, key: str) -> Price:
        """See StripePort."""
        return _price(
            asked(
                lambda: self._v1.prices.create(
                    {
                        "currency": price.currency,
                        "product": price.product_id,
                        "recurring": {"interval": "month", "usage_type": "metered", "meter": price.meter_id},
                        "unit_amount_decimal": cast(Decimal, price.unit_amount),  # the SDK writes small ones as 1E-7
                        "lookup_key": lookup_key,
                        "metadata": {"weir": price.weir},
                    },
                    {"idempotency_key": key},
                )
            )
        )

    def reactivate_price(self, price_id: str) -> Price:
        """See StripePort."""
        return _price(asked(lambda: self._v1.prices.update(price_id, {"active": True})))

    def find_customer(self, customer_id: str) -> StripeCustomer | None:
        """See StripePort."""
        found = found_or_none(lambda: self._v1.customers.retrieve(customer_id))
        return None if found is None else _customer(found)

    def create_customer(self, name: str, email: str | None, weir_customer: str, key: str) -> StripeCustomer:
        """See StripePort."""
        params: CustomerCreateParams = {"name": name, "metadata": {"weir_customer": weir_customer}}
        if email is not None:
            params["email"] = email
        return _customer(asked(lambda: self._v1.customers.create(params, {"idempotency_key": key})))

    def find_subscription(self, subscription_id: str) -> Subscription | None:
        """See StripePort."""
        found = found_or_none(lambda: self._v1.subscriptions.retrieve(subscription_id))
        return None if found is None else _subscription(found)

    def subscriptions(self, customer_id: str) -> list[Subscription]:
        """See StripePort."""
        return listed(lambda: self._v1.subscriptions.list({"customer": customer_id, "limit": PAGE_ROWS}), _subscription)

    def create_subscription(self, customer_id: str, price_id: str, weir_customer: str, key: str) -> Subscription:
        """See StripePort."""
        params: SubscriptionCreateParams = {
            "customer": customer_id,
            "items": [{"price": price_id}],
            "billing_cycle_anchor_config": {"day_of_month": 1, "hour": 0, "minute": 0, "second": 0},
            "billing_mode": {"type": "flexible"},
            "metadata": {"weir_customer": weir_customer},
        }
        return _subscription(asked(lambda: self._v1.subscriptions.create(params, {"idempotency_key": key})))

    def items(self, subscription_id: str) -> list[Item]:
        """See StripePort."""
        return listed(
            lambda: self._v1.subscription_items.list({"subscription": subscription_id, "limit": PAGE_ROWS}), _item
        )

    def add_item(self, subscription_id: str, price_id: str, key: str) -> Item:
        """See StripePort."""
        return _item(
            asked(
                lambda: self._v1.subscription_items.create(
                    {"subscription": subscription_id, "price": price_id}, {"idempotency_key": key}
                )
            )
        )

    def remove_item(self, item_id: str) -> None:
        """See StripePort."""
        asked(lambda: self._v1.subscription_items.delete(item_id))

    def open_invoices(self, customer_id: str) -> list[Invoice]:
        """See StripePort."""
        return listed(
            lambda: self._v1.invoices.list({"customer": customer_id, "status": "open", "limit": PAGE_ROWS}),
            _invoice,
        )

    def summaries(self, meter_id: str, customer_id: str, start_s: int, end_s: int) -> list[Summary]:
        """See StripePort."""
        found = listed(
            lambda: self._v1.billing.meters.event_summaries.list(
                meter_id,
                {
                    "customer": customer_id,
                    "start_time": start_s,
                    "end_time": end_s,
                    "value_grouping_window": "hour",
                    "limit": PAGE_ROWS,
                },
            ),
            _summary,
        )
        return sorted(found, key=lambda summary: summary.start_s)

    def error_report(self, event_id: str) -> ErrorReport:
        """See StripePort."""
        return _error_report(asked(lambda: self._client.v2.core.events.retrieve(event_id)))


def verify(raw: bytes, signature: str, secret: str) -> None:
    """Check a webhook's signature over its raw bytes, without its age. Raises whatever the SDK raises.

    The age is checked by the caller against its own clock: the SDK would read the machine's.
    """
    stripe.WebhookSignature.verify_header(raw, signature, secret, tolerance=None)


def _meter(row: stripe.billing.Meter) -> Meter:
    return Meter(
        id=row.id,
        event_name=row.event_name,
        is_active=row.status == "active",
        formula=str(row.default_aggregation.formula),
        customer_key=row.customer_mapping.event_payload_key,
        value_key=row.value_settings.event_payload_key,
        window=None if row.event_time_window is None else str(row.event_time_window),
    )


def _product(row: stripe.Product) -> Product:
    return Product(row.id, row.active, mark(row.metadata, "weir"))


def _price(row: stripe.Price) -> Price:
    recurring = row.recurring
    return Price(
        id=row.id,
        product_id=id_of(row.product),
        is_active=row.active,
        currency=row.currency,
        unit_amount="" if row.unit_amount_decimal is None else plain(row.unit_amount_decimal),
        interval="" if recurring is None else str(recurring.interval),
        interval_count=0 if recurring is None else recurring.interval_count,
        meter_id="" if recurring is None else recurring.meter or "",
        has_transform=row.transform_quantity is not None,
        weir=mark(row.metadata, "weir"),
    )


def _customer(row: stripe.Customer) -> StripeCustomer:
    is_deleted = bool(getattr(row, "deleted", False))
    if is_deleted:
        return StripeCustomer(row.id, is_deleted, "")
    return StripeCustomer(row.id, is_deleted, mark(row.metadata, "weir_customer"), row.currency or "")


def _subscription(row: stripe.Subscription) -> Subscription:
    return Subscription(row.id, str(row.status), tuple(_item(item) for item in row["items"]["data"]))


def _item(row: stripe.SubscriptionItem) -> Item:
    recurring = row.price.recurring
    meter_id = "" if recurring is None else recurring.meter or ""
    return Item(row.price.id, meter_id, row.current_period_start, row.current_period_end, row.id, row.created)


def _invoice(row: stripe.Invoice) -> Invoice:
    return Invoice(row.id, row.attempt_count, row.amount_remaining, row.due_date)


def _summary(row: stripe.billing.MeterEventSummary) -> Summary:
    units = int(row.aggregated_value)
    if units != row.aggregated_value:
        raise StripeError(f"Stripe counted {row.aggregated_value} units; Weir only sends whole ones")
    return Summary(row.start_time, row.end_time, units)


def _error_report(row: Any) -> ErrorReport:
    data = row.data
    samples: list[tuple[str, str]] = []
    for error_type in data.reason.error_types:
        for sample in error_type.sample_errors:
            key = getattr(sample.request, "identifier", None) or getattr(sample.request, "idempotency_key", None)
            if key:
                samples.append((str(key), str(error_type.code)))
    return ErrorReport(int(data.reason.error_count), tuple(samples), str(data.developer_message_summary))
