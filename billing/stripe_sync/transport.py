"""Which way a batch goes to Stripe, and what one call carries: a v1 meter event, or a hundred on the stream.

Invariant: what may have been counted goes the same way again, since it is not documented that Stripe's two ways know
each other's identifiers. A call of the stream has a key of its own, written onto its batches before it is sent: an
error report names the call by it.

The stream is taken when the backlog is large: v1 is answered event by event at 1,000 a second at most, and judged at
once, which is worth more as long as it is fast enough. What Stripe refuses as a whole (a sandbox may have no stream)
was not looked at, and goes by v1.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from billing import ids
from billing.ledger.outbox import Batch, Claim
from billing.stripe_sync import retry
from billing.stripe_sync.lanes import Pace
from billing.stripe_sync.port import MeterEvent, StripePort
from billing.stripe_sync.reported import STREAM_KEY
from billing.stripe_sync.retry import Answer

V1, STREAM = "v1", "stream"
STREAM_EVENTS_MAX = 100
STREAM_CALLS = 4

Call = tuple[Claim, ...]
"""What one request carries: one claim by v1, up to a hundred by the stream."""


def addressed(batches: Iterable[Batch], *, is_streaming: bool) -> list[Batch]:
    """Give each batch its way and its key: those of one call of the stream share one."""
    found = list(batches)
    by_stream = [batch for batch in found if (is_streaming if batch.first_sent_at is None else batch.via == STREAM)]
    taken = {batch.id for batch in by_stream}
    chosen = [_by_v1(batch) for batch in found if batch.id not in taken]
    for first in range(0, len(by_stream), STREAM_EVENTS_MAX):
        key = f"{STREAM_KEY}{ids.uuid7()}"
        call = by_stream[first : first + STREAM_EVENTS_MAX]
        chosen += [replace(batch, via=STREAM, idempotency_key=key) for batch in call]
    return chosen


def calls(claims: Iterable[Claim]) -> list[Call]:
    """Group claims into calls: by key on the stream, one by one else."""
    grouped: dict[str, list[Claim]] = {}
    for claim in claims:
        key = claim.batch.idempotency_key if claim.batch.via == STREAM else claim.batch.id
        grouped.setdefault(key, []).append(claim)
    return [tuple(group) for group in grouped.values()]


def send(port: StripePort, pace: Pace, call: Call) -> list[Answer]:
    """Make one call; return an answer for each of its claims."""
    pace.wait()
    first = call[0].batch
    if first.via == STREAM:
        answer = port.stream([_event(claim.batch) for claim in call], first.idempotency_key)
        return [answer] * len(call)
    return [
        port.send(
            first.event_name,
            first.stripe_customer_id,
            first.units,
            first.timestamp_s,
            first.identifier,
            first.idempotency_key,
        )
    ]


def is_refused(claim: Claim, answer: Answer) -> bool:
    """Tell whether the stream refused a whole call, so that its batches may go by v1 at once."""
    return claim.batch.via == STREAM and answer.status is None and not answer.has_left


def waves(due: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Divide into waves of different customers, each customer's batches in the order of their seq."""
    lanes: dict[str, list[Batch]] = {}
    for batch in sorted(due, key=lambda batch: batch.seq):
        lanes.setdefault(batch.customer_id, []).append(batch)
    waiting = list(lanes.values())
    while waiting:
        front = waiting[:size]
        yield [lane.pop(0) for lane in front]
        waiting = waiting[size:] + [lane for lane in front if lane]


def answered(groups: Sequence[Call], answers: Sequence[Sequence[Answer]]) -> Iterator[tuple[Claim, Answer]]:
    """Return each claim with its answer."""
    for call, of_call in zip(groups, answers, strict=True):
        yield from zip(call, of_call, strict=True)


def _by_v1(batch: Batch) -> Batch:
    """A batch that was never counted, and went by the stream before, gets a key of its own again."""
    if not batch.idempotency_key.startswith(STREAM_KEY):
        return replace(batch, via=V1)
    return replace(batch, via=V1, idempotency_key=retry.next_key(batch.identifier, batch.attempts))


def _event(batch: Batch) -> MeterEvent:
    return MeterEvent(batch.event_name, batch.stripe_customer_id, batch.units, batch.timestamp_s, batch.identifier)
