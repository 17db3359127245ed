"""The double's state: one Stripe account in test mode. Every function that touches it holds `lock`.

Objects are the JSON documents themselves, kept per type in the order of their creation. Time-driven work
waits in the agenda, a heap of (instant, action); an action checks for itself whether it still applies.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .clock import Clock
from .errors import missing_object
from .spec import Specification
from .targets import Target
from .usage import Rejections, UsageLog

Json = dict[str, Any]
API_VERSION = "2026-10-28.endive"
NOUNS = {
    "billing.meter": "billing meter",
    "billing.credit_grant": "credit grant",
    "checkout.session": "checkout session",
    "webhook_endpoint": "webhook endpoint",
    "subscription_item": "subscription_item",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A subscription item at one price, from an instant, until another once it ended."""

    item: str
    price: Json
    start: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class LineSource:
    """What an invoice line (several, with tiers) is computed from: usage, a quantity, or a plain amount."""

    price: Json | None
    item: str | None
    start: int
    end: int
    quantity: int | None = None
    """None: the meter says."""
    amount: int | None = None
    """A plain amount, without a price."""


class Policy:
    """What the real account's owner would have set in the Dashboard, and what nobody outside can know.

    Each choice that Stripe's documents leave open is a field here, so that a test can run with both answers.
    """

    def __init__(self) -> None:
        self.aggregation_delay_s = 0
        """How old an event must be before summaries show it."""
        self.meter_event_latency_s = 0.0
        """Real seconds for which a meter event is in flight, so that the rule of one per lane bites."""
        self.finalization_grace_s = 3_600
        """From a period's end to the finalization of its draft; the Dashboard allows up to 72 hours."""
        self.finalization_delay_max_s = 72 * 3_600
        """Stripe waits so long for a 2xx to `invoice.created` before it finalizes anyway."""
        self.retry_delays_s: tuple[int, ...] = (60, 600, 3_600, 3 * 3_600, 12 * 3_600, 24 * 3_600, 24 * 3_600)
        """Between webhook attempts, on the double's clock: three days in all, the exact steps are assumed."""
        self.payment_retry_s: tuple[int, ...] = (3 * 86_400, 5 * 86_400, 7 * 86_400)
        """Between payment attempts of an open invoice (assumed; a Dashboard setting)."""
        self.dunning_end = "canceled"
        """The subscription's status when the last attempt failed: canceled, unpaid or past_due."""
        self.charge_minimum = 50
        """A total below this many minor units is not charged but carried on the customer's balance."""
        self.is_first_invoice_made = True
        """Whether a new subscription gets its first invoice, of nothing yet for metered prices."""
        self.requests_per_s_max: int | None = None
        """Stripe: 25 in a sandbox, 100 live; meter events of v1 apart."""
        self.meter_events_per_s_max: int | None = None
        """Stripe: 1,000 live."""
        self.decline_code = "card_declined"
        """What a declined saved card is told."""
        self.is_payment_delayed = False
        """Whether saved methods take days, as a bank debit."""
        self.is_refusal_kept = True
        """Whether an Idempotency-Key keeps a handler's refusal (no such meter) as it keeps a success."""
        self.is_empty_summary_listed = False
        """Whether a window without events has a summary row of 0 (undocumented)."""


class Account:
    """All objects, the clock, the agenda, and the outlets that other parts hang on."""

    def __init__(self, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.spec = Specification()
        self.policy = Policy()
        self.objects: dict[str, dict[str, Json]] = {}
        self.deleted: dict[str, Json] = {}
        self.hidden: dict[str, Json] = {}
        """By object id: fields that the object shows only when they are expanded, as a price its tiers."""
        self.usage = UsageLog()
        self.rejections = Rejections()
        self.session_tokens: dict[str, int] = {}
        """Meter event sessions: token to the instant of its end."""
        self.targets: dict[str, Target] = {}
        """Webhook destinations by id."""
        self.checkout_plans: dict[str, Json] = {}
        """By checkout session: what was asked for the payment intent that it will make."""
        self.saved_methods: set[tuple[str | None, str]] = set()
        """(customer, payment method) that may be charged while the holder is away."""
        self.off_session_intents: set[str] = set()
        """Intents that were made off session."""
        self.violations: list[str] = []
        self.declined_customers: set[str] = set()
        self.request: Json | None = None
        """Who causes the events that are emitted now; None for Stripe itself."""
        self.event_sinks: list[Callable[[Json], None]] = []
        self.is_acknowledged: Callable[[str], bool] = lambda event_id: True
        """Whether each subscribed endpoint has answered an event with 2xx; the webhook sender knows."""
        self.segments: dict[str, Segment] = {}
        """By subscription item: since when its present price holds."""
        self.closed_segments: dict[str, list[Segment]] = {}
        """By subscription: usage at earlier prices, still to be invoiced."""
        self.drafts: dict[str, list[LineSource]] = {}
        """By invoice: what its lines will be computed from, until it is finalized."""
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._salt = secrets.token_hex(4)

    def now(self) -> int:
        """Unix seconds."""
        return self.clock.now()

    def new_id(self, prefix: str) -> str:
        """An id in Stripe's form, unique over all doubles of a test run."""
        return f"{prefix}_{self._salt}{next(self._numbers):08d}"

    def all(self, kind: str) -> list[Json]:
        """Objects of a type, oldest first."""
        return list(self.objects.get(kind, {}).values())

    def add(self, document: Json) -> Json:
        """Stores a new object under its type and id."""
        self.objects.setdefault(document["object"], {})[document["id"]] = document
        return document

    def get(self, kind: str, object_id: str, *, param: str | None = None) -> Json:
        """The object; 404 `resource_missing`, or 400 when a parameter (`param`) names it."""
        found = self.objects.get(kind, {}).get(object_id)
        if found is None:
            noun = NOUNS.get(kind, kind)
            raise missing_object(noun, object_id, param=param or "id", status=404 if param is None else 400)
        return found

    def find(self, object_id: str) -> Json | None:
        """Any object by its id alone, for `expand`."""
        return next((store[object_id] for store in self.objects.values() if object_id in store), None)

    def get_event(self, event_id: str) -> Json:
        """A snapshot or a v2 event by its id."""
        return self.objects.get("v2.core.event", {}).get(event_id) or self.get("event", event_id)

    def remove(self, kind: str, object_id: str) -> Json:
        """Deletes an object; what remains of it is Stripe's three-field stub."""
        del self.objects[kind][object_id]
        stub = {"id": object_id, "object": kind, "deleted": True}
        self.deleted[object_id] = stub
        return stub

    def emit(self, kind: str, document: Json, previous: Json | None = None) -> Json:
        """Records a snapshot event and hands it to the webhook sender. Both documents are checked first."""
        self.verify(document["object"], document)
        data: Json = {"object": copy.deepcopy(document)}
        if previous is not None:
            data["previous_attributes"] = copy.deepcopy(previous)
        event: Json = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": self.request or {"id": None, "idempotency_key": None},
            "type": kind,
        }
        self.verify("event", event)
        self.add(event)
        for sink in self.event_sinks:
            sink(event)
        return event

    def verify(self, name: str, document: Json) -> None:
        """Our own object against Stripe's schema; a mistake is recorded and stops the request."""
        problems = self.spec.problems_of_object(name, document)
        if problems:
            self.violations.extend(f"own {name}: {problem}" for problem in problems)
            raise AssertionError(f"the double made a {name} that Stripe's document refuses: {problems}")

    def schedule(self, at: int, action: Callable[[], None]) -> None:
        """Runs the action when the clock reaches the instant; equal instants in the order of scheduling."""
        heapq.heappush(self._agenda, (at, next(self._numbers), action))

    def next_due(self) -> int | None:
        """The instant of the next action, if any waits."""
        return self._agenda[0][0] if self._agenda else None

    def run_next(self) -> None:
        """Takes the next action and runs it at its instant, as Stripe itself and not as a request."""
        at, _, action = heapq.heappop(self._agenda)
        request, self.request = self.request, None
        try:
            with self.clock.pinned(at):
                action()
        finally:
            self.request = request
