"""StripeDouble: the double as tests hold it, with the levers that no client has.

Everything here plays either Stripe's own side (time, faults, deliveries) or the people behind it (a card that
fails, an owner who deletes a customer). Each lever emits the events which Stripe documents for the change.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from . import (
    adjustments,
    catalog,
    checkout,
    control,
    customers,
    endpoints,
    error_reports,
    events,
    grants,
    intents,
    invoices,
    meter_events,
    meters,
    payments,
    stream,
    subscriptions,
    summaries,
)
from .account import Account, Json, LineSource, Policy
from .clock import DAY_S, Clock, Instant, to_unix
from .courier import Courier, Delivery
from .dispatch import Dispatcher, Reply, Request
from .faults import Fault, FaultKind
from .routing import Route, Router
from .server import HttpServer
from .targets import Target
from .usage import MeterEvent

ROUTES: tuple[Route, ...] = (
    *adjustments.ROUTES,
    *catalog.ROUTES,
    *checkout.ROUTES,
    *grants.ROUTES,
    *intents.ROUTES,
    *customers.ROUTES,
    *endpoints.ROUTES,
    *error_reports.ROUTES,
    *events.ROUTES,
    *invoices.ROUTES,
    *meter_events.ROUTES,
    *meters.ROUTES,
    *payments.ROUTES,
    *stream.ROUTES,
    *subscriptions.ROUTES,
    *summaries.ROUTES,
)


class MovableClock:
    """`double.clock`: reads and moves the double's time; what becomes due on the way happens, in order."""

    def __init__(self, double: StripeDouble) -> None:
        self._double = double

    def now(self) -> int:
        """Unix seconds."""
        return self._double.account.clock.moved()

    def advance(self, seconds: int = 0, *, minutes: int = 0, hours: int = 0, days: int = 0) -> int:
        """Moves time forward and gives the new instant; what is due on the way is delivered before."""
        span = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        return self.move_to(self.now() + int(span.total_seconds()))

    def move_to(self, instant: Instant) -> int:
        """Moves time to an instant, which must not be in the past."""
        until = to_unix(instant)
        assert until >= self.now(), f"the clock does not go back from {self.now()} to {until}"
        self._double.pass_time(until)
        return self.now()


class StripeDouble:
    """A Stripe account in test mode behind a loopback socket.

    With `now` the clock stands still until it is moved; without, it follows the machine's. `url` serves both
    of the SDK's base addresses, `api` and `meter_events`.
    """

    def __init__(self, *, now: Instant | None = None, port: int = 0, api_key: str | None = None) -> None:
        self.api_key = api_key or f"sk_test_{secrets.token_hex(12)}"
        self.account = Account(Clock(now))
        self.clock = MovableClock(self)
        self._dispatcher = Dispatcher(self.account, Router(ROUTES), self.api_key)
        self._courier = Courier(self.account)
        self._server = HttpServer(self.answer, port)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Opens the port and begins to deliver webhooks."""
        self._server.start()
        self._courier.start()

    def stop(self) -> None:
        """Closes everything."""
        self._server.stop()
        self._courier.close()

    def answer(self, request: Request) -> Reply:
        """Control requests go to `control`, all others to Stripe's side."""
        if request.path.startswith(control.PREFIX):
            return control.answer(self, request)
        return self._dispatcher.answer(request)

    @property
    def url(self) -> str:
        """The base address, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def policy(self) -> Policy:
        """What Stripe leaves open, or its Dashboard decides."""
        return self.account.policy

    @property
    def violations(self) -> list[str]:
        """Requests that Stripe's document refuses, and defects of the double itself. Tests assert that it is
        empty.
        """
        return self.account.violations

    @property
    def request_count(self) -> int:
        """API requests that arrived, whatever became of them."""
        return self._dispatcher.request_count

    @property
    def executing_count(self) -> int:
        """API requests that hold their idempotency key and lane now; a test waits on it to make two meet."""
        return self._dispatcher.executing_count

    # -- usage ---

    @property
    def meter_events(self) -> tuple[MeterEvent, ...]:
        """Accepted events in the order of their arrival; `status` says whether they still count."""
        with self.account.lock:
            return tuple(self.account.usage.events)

    def meter_total(
        self,
        customer: str | None = None,
        event_name: str | None = None,
        start: Instant | None = None,
        end: Instant | None = None,
    ) -> int:
        """The exact sum of values that count with timestamps in [start, end). The values must add up to an
        integer.
        """
        since, until = (None if each is None else to_unix(each) for each in (start, end))
        with self.account.lock:
            total = self.account.usage.total(customer, event_name, since, until)
        assert total == total.to_integral_value(), f"{total} is not whole; read meter_events for decimals"
        return int(total)

    def reject_event(
        self,
        identifier: str,
        code: str = "meter_event_customer_not_found",
        message: str = "Rejected by asynchronous validation.",
    ) -> None:
        """An event that was accepted turns out invalid; the report follows within ten seconds of the double's
        time.
        """
        with self.account.lock:
            event = next(each for each in reversed(self.account.usage.events) if each.identifier == identifier)
            error_reports.reject(self.account, event, code, message)

    def lose_event(self, identifier: str) -> None:
        """An event that was accepted is counted nowhere, and nobody is told; its identifier stays known."""
        with self.account.lock:
            event = next(each for each in reversed(self.account.usage.events) if each.identifier == identifier)
            event.status = "lost"

    def find_event(self, identifier: str) -> None:
        """A lost event is counted after all."""
        with self.account.lock:
            event = next(each for each in reversed(self.account.usage.events) if each.identifier == identifier)
            assert event.status == "lost", f"{identifier} is {event.status}"
            event.status = "counted"

    def reject_next(
        self,
        count: int = 1,
        code: str = "meter_event_customer_not_found",
        message: str = "Rejected by asynchronous validation.",
    ) -> None:
        """The next events are answered with 200 and then rejected."""
        with self.account.lock:
            self.account.rejections.ordered.extend([(code, message)] * count)

    # -- faults, outages, time ---

    def fault(self, kind: FaultKind | str, path: str = "*", **options: Any) -> Fault:
        """Sets a fault; see `Fault` for the options. The result's `hits` counts what it did."""
        with self.account.lock:
            return self._dispatcher.faults.add(Fault(FaultKind(kind), path, **options))

    def clear_faults(self) -> None:
        """No more faults."""
        with self.account.lock:
            self._dispatcher.faults.clear()

    def described_faults(self) -> list[dict[str, Any]]:
        """The faults that are set, with their counts."""
        with self.account.lock:
            return self._dispatcher.faults.described()

    def go_offline(self) -> None:
        """Connections are refused; state and time go on."""
        self._server.stop()

    def go_online(self) -> None:
        """Back on the same port."""
        self._server.start()

    def pass_time(self, until: int) -> None:
        """Moves the clock step by step: each due action, then the deliveries that it caused."""
        account = self.account
        while True:
            with account.lock:
                due = min(
                    (each for each in (account.next_due(), self._courier.next_due()) if each is not None),
                    default=None,
                )
                if due is None or due > until:
                    break
                account.clock.jump(due)
                self._dispatcher.catch_up()
            self._courier.wake()
            assert self._courier.settle(), "webhook receivers did not answer in time"
        with account.lock:
            account.clock.jump(until)
        self._courier.wake()

    # -- webhooks ---

    @property
    def events(self) -> list[Json]:
        """Snapshot events so far, oldest first."""
        with self.account.lock:
            return self.account.all("event")

    @property
    def thin_events(self) -> list[Json]:
        """v2 events so far, with their data."""
        with self.account.lock:
            return self.account.all("v2.core.event")

    @property
    def deliveries(self) -> list[Delivery]:
        """Webhook attempts so far."""
        return list(self._courier.deliveries)

    def add_webhook(
        self, url: str, events: Iterable[str] = ("*",), *, secret: str | None = None, is_thin: bool = False
    ) -> Target:
        """Registers a receiver; the result has `id` and `secrets[0][0]`. Thin ones get v2 events only."""
        chosen = secret or endpoints.new_secret()
        with self.account.lock:
            if is_thin:
                made = endpoints.add_destination(self.account, url, list(events), chosen, "double", is_thin=True)
            else:
                made = endpoints.add_webhook(self.account, url, list(events), chosen, {})
            return self.account.targets[made["id"]]

    def roll_secret(self, target: str, *, overlap_s: int = DAY_S) -> str:
        """A new secret for a receiver; for the overlap both sign."""
        with self.account.lock:
            return endpoints.roll_secret(self.account, target, overlap_s=overlap_s)

    def hold_events(self) -> None:
        """From now on events wait."""
        self._courier.hold()

    def release_events(self, order: Callable[[list[str]], Sequence[str]] | str = "sent") -> None:
        """Delivers the waiting events as sent, `reversed`, or in the sequence of ids that a function makes of
        theirs.

        An id that the function repeats is delivered again.
        """
        orders: dict[str, Callable[[list[str]], Sequence[str]]] = {
            "sent": list,
            "reversed": lambda ids: ids[::-1],
        }
        self._courier.release(orders[order] if isinstance(order, str) else order)

    def delay_events(self, seconds: int) -> None:
        """Events are delivered so much later, on the double's clock."""
        self._courier.delay_s = seconds

    def sign_with(self, clock: Callable[[], int]) -> None:
        """The signatures' time comes from here instead of the machine."""
        self._courier.signing_time = clock

    def wait_delivered(self, timeout_s: float = 10.0) -> bool:
        """Waits until nothing that is due is undelivered; failed deliveries wait for their retry and do not
        count.
        """
        return self._courier.settle(timeout_s)

    def deliver(
        self,
        event: Json | str,
        *,
        target: str | None = None,
        times: int = 1,
        signed_at: int | None = None,
        secret: str | None = None,
        tamper: Callable[[bytes], bytes] | None = None,
    ) -> list[Delivery]:
        """Sends an event now, from the calling thread, whether or not it was sent before."""
        with self.account.lock:
            found = self.account.get_event(event) if isinstance(event, str) else event
            wanted = [
                each
                for each in self.account.targets.values()
                if each.id == target or (target is None and each.wants(found))
            ]
        return [
            self._courier.send(found, each, signed_at=signed_at, secret=secret, tamper=tamper)
            for each in wanted
            for _ in range(times)
        ]

    # -- the people behind the account ---

    def subscription_of(self, customer_or_id: str) -> Json:
        """A subscription by its id, or a customer's newest."""
        with self.account.lock:
            return next(
                each
                for each in reversed(self.account.all("subscription"))
                if customer_or_id in (each["id"], each["customer"])
            )

    def set_subscription_status(self, customer_or_id: str, status: str) -> Json:
        """`active`, `past_due`, `unpaid` or `canceled`, with its event."""
        with self.account.lock:
            subscription = self.subscription_of(customer_or_id)
            subscriptions.set_status(self.account, subscription, status)
            return subscription

    def decline_payments(self, customer: str, *, is_declined: bool = True) -> None:
        """The customer's card fails from now on, or works again."""
        with self.account.lock:
            if is_declined:
                self.account.declined_customers.add(customer)
            else:
                self.account.declined_customers.discard(customer)

    def fail_invoice(self, customer: str, amount: int = 1_000) -> Json:
        """A cycle invoice whose payment failed: open, its subscription past due."""
        with self.account.lock:
            subscription = self.subscription_of(customer)
            item = subscription["items"]["data"][0]
            source = LineSource(None, None, item["current_period_start"], self.account.now(), amount=amount)
            was_declined = customer in self.account.declined_customers
            self.account.declined_customers.add(customer)
            invoice = invoices.draft(
                self.account,
                subscription,
                [source],
                "subscription_cycle",
                item["current_period_start"],
                self.account.now(),
            )
            invoices.finalize(self.account, invoice)
            self.decline_payments(customer, is_declined=was_declined)
            return invoice

    def pay_invoice(self, invoice_id: str) -> Json:
        """The customer pays an open invoice."""
        with self.account.lock:
            invoice = self.account.get("invoice", invoice_id)
            assert invoice["status"] == "open", f"the invoice is {invoice['status']}"
            self.account.declined_customers.discard(invoice["customer"])
            payments.attempt(self.account, invoice)
            return invoice

    def finalize_invoice(self, invoice_id: str) -> Json:
        """Finalizes a draft before its time."""
        with self.account.lock:
            return invoices.finalize(self.account, self.account.get("invoice", invoice_id))

    def end_period(self, customer_or_id: str) -> Json:
        """Moves time to the end of the running period and gives the draft invoice."""
        subscription = self.subscription_of(customer_or_id)
        self.clock.move_to(subscription["items"]["data"][0]["current_period_end"])
        with self.account.lock:
            return invoices.refresh(self.account, self.account.get("invoice", subscription["latest_invoice"]))

    def delete_customer(self, customer: str) -> Json:
        """Somebody deletes the customer in the Dashboard."""
        with self.account.lock:
            return customers.remove(self.account, customer)

    def charges_of(self, customer: str) -> list[Json]:
        """A customer's charges, oldest first."""
        with self.account.lock:
            return [each for each in self.account.all("charge") if each["customer"] == customer]

    def refund(self, charge_id: str, amount: int | None = None) -> Json:
        """Somebody refunds a charge in the Dashboard."""
        with self.account.lock:
            return payments.refund(self.account, self.account.get("charge", charge_id), amount, None, {})

    def fail_refund(self, refund_id: str) -> Json:
        """The payer's bank returns a refund."""
        with self.account.lock:
            return payments.fail_refund(self.account, self.account.get("refund", refund_id))

    def open_dispute(self, charge_id: str, reason: str = "fraudulent", amount: int | None = None) -> Json:
        """The cardholder disputes a charge, or a part of it."""
        with self.account.lock:
            return payments.open_dispute(self.account, self.account.get("charge", charge_id), reason, amount)

    def close_dispute(self, dispute_id: str, *, is_won: bool) -> Json:
        """The bank decides."""
        with self.account.lock:
            dispute = self.account.get("dispute", dispute_id)
            return payments.close_dispute(self.account, dispute, is_won=is_won)

    def complete_checkout(self, session_id: str, *, is_delayed: bool = False) -> Json:
        """The customer pays on the Checkout page; with a delayed method the money comes later, or not."""
        with self.account.lock:
            session = self.account.get("checkout.session", session_id)
            return checkout.complete(self.account, session, is_delayed=is_delayed)

    def settle_checkout(self, session_id: str, *, is_paid: bool) -> Json:
        """The delayed payment of a completed session arrives, or does not."""
        with self.account.lock:
            return checkout.settle(self.account, self.account.get("checkout.session", session_id), is_paid=is_paid)

    def settle_intent(self, intent_id: str, *, is_paid: bool) -> Json:
        """The delayed payment of an intent arrives, or does not."""
        with self.account.lock:
            intent = self.account.get("payment_intent", intent_id)
            return intents.succeed(self.account, intent) if is_paid else intents.fail(self.account, intent)

    def objects(self, kind: str) -> list[Json]:
        """All objects of a type (`invoice`, `customer`, `billing.meter`, …), oldest first; drafts are up to
        date.
        """
        with self.account.lock:
            found = self.account.all(kind)
            return [invoices.refresh(self.account, each) for each in found] if kind == "invoice" else found
