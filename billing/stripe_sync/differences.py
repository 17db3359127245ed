"""One hour of one customer: what Weir sent against what Stripe counted, why they differ, and what mends it. Pure.

Invariant: nothing is mended that is not proven, and a proof needs three things. All sendings of the hour are settled
for longer than Stripe takes to count them (`TRANSIT_US`; Stripe promises no time, its users see two minutes). What is
missing is the sum of whole batches: some of those in doubt, or one to three, or an unbroken run of them; a sum that no
such choice gives is nobody's guess (`unclear`). And nothing is sent that could be counted twice: within 23 hours of
its first sending a batch goes out again under its own identifier, which Stripe refuses if it has it after all, and
only later under a fresh one.

What the summaries do not show: whose event it was, under which identifier, and when it came. So an amount beyond all
that Weir ever sent in the hour is `doubled` only if it equals what Weir sent under two identifiers; otherwise it is a
stranger's (`unknown_sender`): another program that reports to the same meter. What a stranger sends and what is lost
may cancel each other out; the summaries can not tell that from a match.

Sums are exact below 2⁵³ units: Stripe adds in floating point (facts: values of at most 15 digits).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from billing.clock import HOUR_US, SECOND_US, Instant, instant_text
from billing.ledger.outbox import DELIVERED, Batch, State
from billing.ledger.repairs import Kind as RepairKind
from billing.ledger.repairs import Repair
from billing.stripe_sync.retry import RESEND_AGE_US_MAX, TIMESTAMP_AGE_US_MAX

TRANSIT_US = HOUR_US
"""How long Stripe may take to show what it accepted; thirty times what its users report."""

EXACT_UNITS_MAX = 2**53
CHOICE_BATCHES_MAX = 3
CHOICE_FROM_MAX = 100


class Kind(StrEnum):
    """Why the two sums of an hour, or of an invoice's line, differ."""

    MATCH = "match"
    IN_TRANSIT = "in_transit"
    REJECTED = "rejected"
    HELD = "held"
    CARRIED = "carried"
    LOST = "lost"
    LATE = "late"
    DOUBLED = "doubled"
    UNKNOWN_SENDER = "unknown_sender"
    UNCLEAR = "unclear"
    UNREADABLE = "unreadable"


EXPLAINED = frozenset({Kind.MATCH, Kind.IN_TRANSIT, Kind.REJECTED, Kind.HELD, Kind.CARRIED})
"""The difference has a known reason and a known way on; all else makes `weir stripe reconcile` exit with 1."""


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Stripe does not hold the batch: send it again, under a fresh identifier or (in Stripe's memory) its own."""

    batch: Batch
    is_fresh: bool


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Stripe counted the batch under two identifiers: cancel the present one."""

    batch: Batch


Step = SendAgain | TakeBack


@dataclass(frozen=True, slots=True)
class Ghost:
    """An identifier that was given up or taken back, timed in the hour, and its batch as it is now."""

    repair: Repair
    batch: Batch


@dataclass(frozen=True, slots=True)
class Finding:
    """What the comparison of an hour came to; `confirmed` are the batches that Stripe provably counted."""

    hour_start: Instant
    ledger_units: int
    stripe_units: int
    kind: Kind
    explanation: str
    confirmed: tuple[Batch, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def difference(self) -> int:
        """Stripe's units less the ledger's."""
        return self.stripe_units - self.ledger_units

    @property
    def is_explained(self) -> bool:
        """Whether nobody needs to look at it."""
        return self.kind in EXPLAINED


def explain(
    hour_start: Instant, batches: Sequence[Batch], ghosts: Sequence[Ghost], stripe_units: int, asked_at: Instant
) -> Finding:
    """Compare one hour: its batches, the identifiers given up in it, and Stripe's sum as it was at `asked_at`."""
    sent = [batch for batch in batches if may_be_counted(batch)]
    total = sum(batch.units for batch in sent)
    hour = _Hour(hour_start, sum(batch.units for batch in batches), stripe_units, asked_at)
    gap = total - stripe_units
    if max(total, abs(stripe_units)) >= EXACT_UNITS_MAX:
        return hour.finding(Kind.UNCLEAR, "Stripe adds in floating point: sums of 2^53 units and more are not exact")
    if gap < 0:
        return _excess(hour, batches, ghosts, -gap)
    if gap == 0:
        return _match(hour, sent, [batch for batch in batches if not may_be_counted(batch)])
    return _shortage(hour, sent, gap)


def explain_line(
    start: Instant, batches: Sequence[Batch], ghosts: Sequence[Ghost], billed_units: int, finalized_at: Instant
) -> Finding:
    """Compare a finalized invoice's line with what was sent for its period: `steps` name what no invoice bills.

    Only what Stripe took within the hour before the finalization, or after it, can have missed the invoice.
    """
    sent = [batch for batch in batches if may_be_counted(batch)]
    gap = sum(batch.units for batch in sent) - billed_units
    if gap <= 0:
        return explain(start, batches, ghosts, billed_units, finalized_at)
    line = _Hour(start, sum(batch.units for batch in batches), billed_units, finalized_at)
    late = [batch for batch in sent if batch.state in DELIVERED and is_young(batch, finalized_at)]
    missed = _chosen(late, gap) or (tuple(late) if sum(batch.units for batch in late) == gap else None)
    if missed is not None:
        text = f"{gap} units came after the invoice was finalized, and are on none"
        return line.finding(Kind.LATE, text, (), [SendAgain(batch, is_fresh=True) for batch in missed])
    doubtful = [batch for batch in sent if batch.state not in DELIVERED]
    if gap == sum(batch.units for batch in doubtful):
        return line.finding(Kind.IN_TRANSIT, f"{gap} units are in doubt and not on the invoice; see the hours")
    return line.finding(Kind.UNCLEAR, f"the invoice lacks {gap} units, and nothing that was late makes them up")


def may_be_counted(batch: Batch) -> bool:
    """Tell whether Stripe counts the batch, or may: it said so, or an attempt's outcome is unknown."""
    return batch.state in DELIVERED or batch.first_sent_at is not None


def is_young(batch: Batch, asked_at: Instant) -> bool:
    """Tell whether the pusher is at it, or Stripe may not show it yet."""
    touched = batch.next_attempt_at if batch.settled_at is None else batch.settled_at
    return batch.state in (State.SENDING, State.UNCERTAIN) or touched > asked_at - TRANSIT_US


@dataclass(frozen=True, slots=True)
class _Hour:
    start: Instant
    ledger_units: int
    stripe_units: int
    asked_at: Instant

    def finding(
        self, kind: Kind, explanation: str, confirmed: Iterable[Batch] = (), steps: Iterable[Step] = ()
    ) -> Finding:
        """Say what this hour came to."""
        known = tuple(batch for batch in confirmed if batch.state not in (State.CONFIRMED, State.SENDING))
        return Finding(self.start, self.ledger_units, self.stripe_units, kind, explanation, known, tuple(steps))


def _match(hour: _Hour, sent: Sequence[Batch], unsent: Sequence[Batch]) -> Finding:
    """All that may be counted is; what else there is was never taken by Stripe, and its state says why."""
    for state, kind in ((State.REJECTED, Kind.REJECTED), (State.HELD, Kind.HELD)):
        of_state = [batch for batch in unsent if batch.state is state]
        if of_state:
            units = sum(batch.units for batch in of_state)
            return hour.finding(kind, f"{units} units {state}: {of_state[0].last_answer}", sent)
    if unsent:
        waiting = sum(batch.units for batch in unsent)
        return hour.finding(Kind.IN_TRANSIT, f"{waiting} units wait to be sent", sent)
    return hour.finding(Kind.MATCH, "", sent)


def _shortage(hour: _Hour, sent: Sequence[Batch], gap: int) -> Finding:
    young = [batch for batch in sent if is_young(batch, hour.asked_at)]
    if gap <= sum(batch.units for batch in young):
        return hour.finding(Kind.IN_TRANSIT, f"{gap} units were sent, and Stripe does not show them yet")
    if young:
        return hour.finding(Kind.LOST, f"{gap} units are missing at Stripe; which, is clear once all were sent for 1 h")
    doubtful = [batch for batch in sent if batch.state not in DELIVERED]
    missing = _chosen(doubtful, gap) or _chosen(sent, gap)
    if missing is None:
        return hour.finding(Kind.UNCLEAR, f"{gap} units are missing at Stripe, which no choice of batches makes up")
    gone = {batch.id for batch in missing}
    steps = [step for batch in missing if (step := _again(batch, hour.asked_at)) is not None]
    text = f"Stripe does not count {gap} units of {', '.join(sorted(gone))}"
    if len(steps) < len(missing):
        text += "; too old for Stripe: `weir stripe push --release` carries a batch forward"
    return hour.finding(Kind.LOST, text, [batch for batch in sent if batch.id not in gone], steps)


def _again(batch: Batch, now: Instant) -> SendAgain | None:
    """How to send a batch that is missing; None for one that is too old for Stripe to take."""
    if now - batch.timestamp_s * SECOND_US > TIMESTAMP_AGE_US_MAX:
        return None
    age_us = RESEND_AGE_US_MAX if batch.first_sent_at is None else now - batch.first_sent_at
    return SendAgain(batch, is_fresh=age_us >= RESEND_AGE_US_MAX)


def _excess(hour: _Hour, batches: Sequence[Batch], ghosts: Sequence[Ghost], excess: int) -> Finding:
    """Stripe holds more than all that may be counted: what was given up and came late, or a stranger's."""
    text = f"Stripe counts {excess} units more than Weir sent"
    taken_back = [g for g in ghosts if g.repair.kind is RepairKind.CANCEL and g.repair.refusal is None]
    cancelled = {ghost.batch.id for ghost in taken_back}
    taken = [ghost for ghost in taken_back if _is_recent(ghost, hour.asked_at)]
    if any(_sum(choice) == excess for choice in _choices(taken)):
        return hour.finding(Kind.IN_TRANSIT, f"{excess} units were taken back, and Stripe still shows them")
    given_up = [g for g in ghosts if g.repair.kind is not RepairKind.CANCEL and g.batch.id not in cancelled]
    found = next((choice for choice in _choices(given_up) if _sum(choice) == excess), None)
    if found is not None:
        return _late(hour, ghosts, found, text)
    repeated = [batch for batch in batches if may_be_counted(batch) and batch.attempts > 1]
    twice = _chosen(repeated, excess)
    if twice is not None:
        names = ", ".join(batch.id for batch in twice)
        advice = "taking one back would take both; settle it with a credit note"
        return hour.finding(Kind.DOUBLED, f"{text}; as many as {names}, sent more than once: {advice}")
    return hour.finding(Kind.UNKNOWN_SENDER, f"{text}; another program reports to this meter for this customer")


def _late(hour: _Hour, ghosts: Sequence[Ghost], found: Sequence[Ghost], text: str) -> Finding:
    """What was given up is counted after all: take the other one back where Stripe still can."""
    if all(ghost.repair.kind is RepairKind.CARRY for ghost in found):
        return hour.finding(Kind.CARRIED, f"{text}: they came after the invoice, and were carried to the next one")
    steps: list[Step] = []
    refused = {g.batch.id for g in ghosts if g.repair.kind is RepairKind.CANCEL}
    for ghost in found:
        batch = ghost.batch
        if batch.id in refused:
            continue
        is_counted = batch.state in DELIVERED and batch.first_sent_at is not None
        is_in_reach = is_counted and hour.asked_at - (batch.first_sent_at or 0) < RESEND_AGE_US_MAX
        if is_in_reach and not is_young(batch, hour.asked_at):
            steps.append(TakeBack(batch))
    names = ", ".join(ghost.repair.identifier for ghost in found)
    text += f"; {names} came late, after it was sent again"
    if not steps:
        text += "; Stripe takes back only what it received within 24 h: settle it with a credit note"
    return hour.finding(Kind.DOUBLED, text, (), steps)


def _is_recent(ghost: Ghost, asked_at: Instant) -> bool:
    return ghost.repair.settled_at is None or ghost.repair.settled_at > asked_at - TRANSIT_US


def _chosen(batches: Sequence[Batch], units: int) -> tuple[Batch, ...] | None:
    """Return the first choice of whole batches that makes up these units exactly, None if there is none."""
    for count in range(1, min(CHOICE_BATCHES_MAX, len(batches)) + 1):
        if len(batches) > CHOICE_FROM_MAX and count == CHOICE_BATCHES_MAX:
            break
        for choice in combinations(batches, count):
            if sum(batch.units for batch in choice) == units:
                return choice
    return _run(batches, units)


def _run(batches: Sequence[Batch], units: int) -> tuple[Batch, ...] | None:
    """Return an unbroken run of batches that makes up these units, as an outage of Stripe's would leave."""
    first, total = 0, 0
    for last, batch in enumerate(batches):
        total += batch.units
        while total > units:
            total -= batches[first].units
            first += 1
        if total == units and first <= last:
            return tuple(batches[first : last + 1])
    return None


def _choices(ghosts: Sequence[Ghost]) -> Iterable[tuple[Ghost, ...]]:
    for count in range(1, min(CHOICE_BATCHES_MAX, len(ghosts)) + 1):
        yield from combinations(ghosts[:CHOICE_FROM_MAX], count)
    if len(ghosts) > CHOICE_BATCHES_MAX:
        yield tuple(ghosts)


def _sum(choice: Iterable[Ghost]) -> int:
    return sum(ghost.repair.units for ghost in choice)


def window_text(batches: Iterable[Batch]) -> list[str]:
    """Return the hours in which the usage of these batches happened, in order."""
    return [instant_text(Instant(start)) for start in sorted({batch.window_start for batch in batches})]
