"""A bench with a receiver of webhooks: a socket in this process that does what the gateway's endpoint does.

The double signs and sends; `sign` signs with the official SDK's own generator, so that the double's idea of a signature
is not the only one.
"""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import stripe

from billing.config import Config
from billing.ledger import inbox
from billing.ledger.accounts import Cause
from billing.ledger.inbox import State, StoredEvent
from billing.stripe_sync import process, webhook
from billing.stripe_sync.webhook import Accepted, Rejected
from tests.stripe_bench import SECRET, Bench, bench


class Hooked:
    """A bench with a receiver of its webhooks."""

    def __init__(self, made: Bench) -> None:
        self.bench = made
        receive = self.receive

        class Handler(http.server.BaseHTTPRequestHandler):
            """What the gateway's endpoint does."""

            def do_POST(self) -> None:
                """Answer with what `receive` says."""
                raw = self.rfile.read(int(self.headers["content-length"]))
                answer = receive(raw, self.headers.get("stripe-signature", ""))
                self.send_response(200 if isinstance(answer, Accepted) else answer.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/stripe/webhook"
        made.double.sign_with(made.double.clock.now)
        self.target = made.double.add_webhook(self.url, secret=SECRET)

    def receive(self, raw: bytes, signature: str, *, config: Config | None = None) -> Accepted | Rejected:
        """One delivery, at the bench's time."""
        return webhook.receive(self.bench.database, config or self.bench.config, raw, signature, self.bench.now())

    def work(self) -> int:
        """Wait until Stripe has delivered, then process what is due."""
        assert self.bench.double.wait_delivered()
        return process.work_off(self.bench.config, self.bench.database, self.bench.port, self.bench.now)

    def events(self, state: State | None = None) -> list[StoredEvent]:
        """The stored events, newest first."""
        with self.bench.database.reading() as conn:
            return inbox.listed(conn, state, 1_000)

    def causes(self, customer_id: str) -> set[Cause]:
        """Why the customer is suspended."""
        return {each.cause for each in self.bench.account(customer_id).suspensions}

    def close(self) -> None:
        """Stop receiving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def hooked_on(url: str, grace_days: int) -> Iterator[Hooked]:
    """A bench on this database with its receiver, closed at the end."""
    with bench(url, grace_days=grace_days) as made:
        hooked = Hooked(made)
        try:
            yield hooked
        finally:
            hooked.close()


def body(**fields: Any) -> bytes:
    """A snapshot event as Stripe would send it."""
    event: dict[str, Any] = {"id": "evt_1", "object": "event", "type": "invoice.paid", "created": 1_772_366_400}
    event["data"] = {"object": {"id": "in_1", "object": "invoice", "customer": "cus_1"}}
    return json.dumps(event | fields).encode()


def sign(raw: bytes, hooked: Hooked, *, secret: str = SECRET, age_s: int = 0) -> str:
    """The header that the official SDK makes."""
    at = hooked.bench.double.clock.now() - age_s
    return str(stripe.WebhookSignature.generate_signature_header(raw.decode(), secret, at))
