"""A stateful double of Stripe for tests and the demo, written from Stripe's public documentation alone.

    with StripeDouble(now=1_770_000_000) as double:
        client = StripeClient(double.api_key, base_addresses={"api": double.url, "meter_events": double.url})

It imports nothing of the product. Every request is checked against Stripe's own OpenAPI document, and so is
every object that is returned or sent; what fails stands in `double.violations`, which a test asserts to be
empty.

**Documented by Stripe, and reproduced**: form and JSON encodings, lists and cursors, error bodies; idempotent
requests; meters and their formulas; the checks of meter events, 35 days back and 5 minutes ahead, 15 digits;
one event in flight per customer and meter; summaries and their alignment; adjustments within 24 hours;
sessions, the stream and thin error reports; metered prices; periods, drafts, grace, finalization, rounding
per line, credits, minimum charge; snapshot and thin webhooks, signatures, rolled secrets, retries.

**Reported from the field, not by Stripe**: the sentences for a known identifier, an unknown meter and an
unknown customer; 409 for concurrent events; the replay header.

**Assumed**, each named where it is decided (most are fields of `Policy`): refusals by a handler are kept
under an Idempotency-Key as any other answer; an identifier is forgotten at exactly 24 hours; 401 for an
expired session; halves round up; no row for an empty summary; a new metered subscription starts with a paid
invoice of zero; retry schedules; which status ends dunning.

**Not modelled**, and refused rather than ignored: trials, schedules, coupons, taxes, prorations of licensed
prices, several currencies per customer, Connect, search, parameters that a route does not list in `models`.
"""

from __future__ import annotations

from .account import Policy
from .courier import Delivery, signature_header
from .double import MovableClock, StripeDouble
from .faults import Fault, FaultKind
from .targets import Target
from .usage import MeterEvent

__all__ = [
    "Delivery",
    "Fault",
    "FaultKind",
    "MeterEvent",
    "MovableClock",
    "Policy",
    "StripeDouble",
    "Target",
    "signature_header",
]
