"""What an answer of Stripe's means for a batch: delivered, try again, hold for review, or refused. Pure.

Invariant: nothing is sent a second time unless Stripe can not count it twice. What makes a second sending safe is the
event's `identifier`: Stripe refuses a known one "within a rolling period of at least 24 hours" (OpenAPI,
`billing.meter_event.identifier`). So an attempt whose outcome is unknown (no answer, or a 5xx) may be repeated for
23 hours after the first one; from then on the batch is held, since only the summaries can tell what became of it.

An answer that proves that nothing happened (429, 409, 401, a connection that was never made) does not start that
clock: a batch that was refused for three days by a wrong API key was never sent, and goes out once the key is mended.

The Idempotency-Key is the identifier, until Stripe answers 5xx: v1 stores the first answer under the key, a 500
included, and repeats it for a day (https://docs.stripe.com/api/idempotent_requests). With the same key such a batch
could never be delivered. That key is spent, and the next attempt takes `<identifier>.<attempt>`; the identifier still
keeps Stripe from counting twice ("An event already exists with identifier": that is success). After a lost answer the
key stays, because then the first request may still be running, and only its own key keeps a second one out.
"""

from dataclasses import dataclass
from typing import assert_never

from billing.clock import DAY_US, HOUR_US, SECOND_US, Instant
from billing.ledger.outbox import Claim, Outcome, State

RESEND_AGE_US_MAX = 23 * HOUR_US
"""Stripe remembers an identifier for at least 24 hours; the hour between is for clocks that disagree."""

CLOCK_BACK_US_MAX = HOUR_US
"""A first sending that lies further in the future than this proves that a clock jumped: its age is unknown."""

TIMESTAMP_AGE_US_MAX = 35 * DAY_US
"""Stripe takes timestamps within the past 35 calendar days (OpenAPI, `billing.meter_event.timestamp`)."""

TOO_OLD = (
    "its usage is older than the 35 days that Stripe takes: `weir stripe push --release BATCH` bills it in the present"
    " period; left held, it is never billed"
)

BACKOFF_FIRST_US = SECOND_US
BACKOFF_LAST_US = 300 * SECOND_US

_DUPLICATE_V1 = "An event already exists with identifier"
_DUPLICATE_V2 = "duplicate_meter_event"
_BUSY = ("rate_limit", "lock_timeout")
"""Mostly 429; older parts of Stripe's API say them with 400, and the SDK takes both for the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt got: Stripe's status, type, code and sentence, or no status when no answer came.

    `has_left` is False only where no connection was made, so that Stripe can not have seen the request.
    """

    status: int | None
    kind: str = ""
    code: str = ""
    message: str = ""
    has_left: bool = True

    @property
    def text(self) -> str:
        """One line for the operator: "429 rate_limit: …"."""
        head = "no answer" if self.status is None else str(self.status)
        label = self.code or self.kind
        return " ".join(f"{head}{' ' + label if label else ''}{': ' + self.message if self.message else ''}".split())[
            :300
        ]


@dataclass(frozen=True, slots=True)
class Done:
    """Stripe has the event."""


@dataclass(frozen=True, slots=True)
class Again:
    """Send it again after `delay_us`; `is_unknown` if this attempt may have been counted.

    `is_key_spent` asks for a new Idempotency-Key; `is_configuration` says that no attempt will succeed until the
    operator changes something.
    """

    delay_us: int
    is_unknown: bool
    is_key_spent: bool = False
    is_configuration: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Not to be sent again: whether Stripe counted it can not be known here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Stripe refused it for good; nothing was counted by this attempt."""

    reason: str


Decision = Done | Again | Hold | Rejected


def decide(attempt: int, answer: Answer, age_us: int) -> Decision:
    """Say what follows from the answer to attempt number `attempt` (from 1).

    `age_us` is the time since the first attempt that may have been counted (this one, if there was none before).
    """
    if _was_not_taken(answer):
        return Again(backoff_us(attempt), is_unknown=False)
    match answer.status:
        case None:
            return _unknown(attempt, age_us, is_key_spent=False)
        case status if 200 <= status < 300:
            return Done()
        case 400 if answer.message.startswith(_DUPLICATE_V1) or answer.code == _DUPLICATE_V2:
            return Done()
        case 400 if answer.kind == "idempotency_error":
            return Hold(f"another request was made under this batch's key ({answer.text})")
        case 401 | 403:
            return Again(backoff_us(attempt), is_unknown=False, is_configuration=True)
        case status if 400 <= status < 500:
            return Rejected(answer.text)
        case _:
            return _unknown(attempt, age_us, is_key_spent=True)


def _was_not_taken(answer: Answer) -> bool:
    """Tell whether Stripe certainly did nothing, and may do it later: no connection, or too busy."""
    if answer.status is None:
        return not answer.has_left
    return answer.status in (409, 429) or (answer.status == 400 and answer.code in _BUSY)


def decide_cancel(answer: Answer) -> str | None:
    """Say how a cancellation went: "" if Stripe took it, its sentence if it never will, None if it is to be repeated.

    Repeated, a cancellation of the same identifier changes nothing more.
    """
    if answer.status is None or answer.status >= 500 or answer.status in (401, 403) or _was_not_taken(answer):
        return None
    return "" if answer.status < 300 else answer.text


def outcome_of(claim: Claim, answer: Answer, now: Instant) -> Outcome:
    """Say what is recorded of a claimed batch that got this answer.

    `first_sent_at` is forgotten where it is proven that Stripe counted neither this attempt nor an earlier one.
    """
    batch = claim.batch
    assert batch.first_sent_at is not None, "a claim says when it was first sent"
    decision = decide(batch.attempts, answer, now - batch.first_sent_at)
    state, delay_us, text, key = State.ACCEPTED, 0, answer.text, batch.idempotency_key
    may_be_counted = claim.was_uncertain
    match decision:
        case Done():
            may_be_counted = True
        case Again():
            may_be_counted = claim.was_uncertain or decision.is_unknown
            state, delay_us = State.UNCERTAIN if may_be_counted else State.PENDING, decision.delay_us
            key = next_key(batch.identifier, batch.attempts) if decision.is_key_spent else key
        case Hold(reason):
            may_be_counted = True
            state, text = State.HELD, reason
        case Rejected():
            state = State.REJECTED
        case _:
            assert_never(decision)
    return Outcome(
        id=batch.id,
        attempts=batch.attempts,
        state=state,
        idempotency_key=key,
        first_sent_at=batch.first_sent_at if may_be_counted else None,
        next_attempt_at=Instant(now + delay_us),
        settled_at=None if isinstance(decision, Again) else now,
        last_answer=text,
    )


def may_send(now: Instant, first_sent_at: int | None, timestamp_s: int) -> Hold | None:
    """Say why a batch must not be sent any more; None if it may be.

    `first_sent_at` is None for a batch that Stripe can not have counted.
    """
    if first_sent_at is not None:
        age = now - first_sent_at
        if age < -CLOCK_BACK_US_MAX:
            return Hold("the clock went back since it was first sent, so its age is not known")
        if age >= RESEND_AGE_US_MAX:
            return Hold("its outcome was still unknown 23 hours after it was first sent")
    if now - timestamp_s * SECOND_US > TIMESTAMP_AGE_US_MAX:
        return Hold(TOO_OLD)
    return None


def next_key(identifier: str, attempt: int) -> str:
    """Return an Idempotency-Key that no attempt up to number `attempt` has used; it begins with the identifier."""
    return f"{identifier}.{attempt}"


def backoff_us(attempt: int) -> int:
    """Return the delay after attempt number `attempt`: 1 s, 2 s, 4 s … at most 5 minutes."""
    assert attempt >= 1, "attempts count from 1"
    return min(BACKOFF_FIRST_US << min(attempt - 1, 30), BACKOFF_LAST_US)


def _unknown(attempt: int, age_us: int, *, is_key_spent: bool) -> Decision:
    if age_us >= RESEND_AGE_US_MAX:
        return Hold("its outcome was still unknown 23 hours after it was first sent")
    return Again(backoff_us(attempt), is_unknown=True, is_key_spent=is_key_spent)
