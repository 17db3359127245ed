"""What the suites of the Stripe double share: the official SDK pointed at it, and a webhook receiver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import stripe
from stripe import StripeClient

from tests.emulators.stripe_double import StripeDouble

NOW = 1_772_366_400
"""2026-03-01T12:00:00Z: a full hour, at noon on the first of a month of 31 days."""
HOUR_S = 3_600
DAY_S = 86_400

stripe.enable_telemetry = False


def client_of(double: StripeDouble, *, retries: int = 0, key: str | None = None) -> StripeClient:
    """The official SDK, which knows nothing of the double but its address."""
    return StripeClient(
        key or double.api_key,
        base_addresses={"api": double.url, "meter_events": double.url},
        max_network_retries=retries,
    )


@dataclass(slots=True)
class World:
    """A double, a client, and a customer whose usage is billed in micro-dollars."""

    double: StripeDouble
    client: StripeClient
    customer: str
    meter: str
    product: str
    price: str

    def use(self, value: str, identifier: str, *, at: int | None = None, key: str | None = None) -> Any:
        """Sends one v1 meter event, with the identifier as its idempotency key unless told."""
        return self.client.v1.billing.meter_events.create(
            {
                "event_name": "spend",
                "payload": {"stripe_customer_id": self.customer, "value": value},
                "identifier": identifier,
                "timestamp": self.double.clock.now() if at is None else at,
            },
            {"idempotency_key": key or identifier},
        )

    def subscribe(self, **more: Any) -> Any:
        """A subscription on the metered price."""
        asked: Any = {"customer": self.customer, "items": [{"price": self.price}], **more}
        return self.client.v1.subscriptions.create(asked)


@contextmanager
def world(*, now: int | None = NOW, retries: int = 0) -> Iterator[World]:
    """A running double with the objects of amount mode; at the end nothing may have broken its contract."""
    with StripeDouble(now=now) as double:
        client = client_of(double, retries=retries)
        customer = client.v1.customers.create({"name": "Acme", "email": "billing@acme.example"})
        meter = client.v1.billing.meters.create(
            {"display_name": "Spend", "event_name": "spend", "default_aggregation": {"formula": "sum"}}
        )
        product = client.v1.products.create({"name": "LLM usage", "id": "weir_usage"})
        price = client.v1.prices.create(
            {
                "currency": "usd",
                "product": product.id,
                "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
                "unit_amount_decimal": Decimal("0.0001"),
            }
        )
        yield World(double, client, customer.id, meter.id, product.id, price.id)
        assert double.violations == []


@dataclass(slots=True)
class Receiver:
    """A webhook endpoint that keeps what it got; `answers` are the statuses to give, then 200 for ever."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[tuple[bytes, str]] = field(default_factory=list)


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Runs a receiver on loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.received.append((body, self.headers["Stripe-Signature"]))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any, **names: Any) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def types_since(w: World, count: int) -> list[str]:
    """Types of the events after the first `count`."""
    return [event["type"] for event in w.double.events[count:]]
