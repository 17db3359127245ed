"""One hour, two sums: what each difference is called, and what is done about it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import DAY_US, HOUR_US, SECOND_US, Instant
from billing.ledger.outbox import DELIVERED, Batch, State
from billing.ledger.repairs import Kind as RepairKind
from billing.ledger.repairs import Repair
from billing.stripe_sync import differences
from billing.stripe_sync.differences import Finding, Ghost, Kind, SendAgain, TakeBack

NOON_S = 1_772_366_400
NOON = Instant(NOON_S * SECOND_US)
LATER = Instant(NOON + 3 * HOUR_US)
TWO_DAYS = Instant(NOON + 2 * DAY_US)


def batch(units: int, state: State = State.ACCEPTED, number: int = 1, **changes: object) -> Batch:
    """A batch of the hour, sent at its beginning."""
    made = Batch(
        id=f"b{number}",
        customer_id="c",
        seq=number,
        stripe_customer_id="cus_1",
        event_name="e",
        idempotency_key=f"b{number}",
        window_start=NOON,
        timestamp_s=NOON_S,
        units=units,
        carry_in_pico=0,
        carry_pico=0,
        covers="[]",
        state=state,
        attempts=1,
        created_at=NOON,
        first_sent_at=NOON,
        next_attempt_at=NOON,
        settled_at=NOON,
        last_answer="told",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def unsent(units: int, state: State, number: int = 9) -> Batch:
    """A batch that Stripe can not have counted."""
    return batch(units, state, number, first_sent_at=None)


def ghost(of: Batch, kind: RepairKind = RepairKind.RESEND, settled_at: Instant | None = NOON) -> Ghost:
    """The first identifier of a batch that has another one now."""
    repair = Repair("r", of.id, NOON, kind, "cus_1", of.id, of.units, NOON_S, "", "", settled_at, None)
    return Ghost(repair, of)


def explain(stripe_units: int, *batches: Batch, ghosts: tuple[Ghost, ...] = (), at: Instant = LATER) -> Finding:
    """The hour's finding."""
    return differences.explain(NOON, batches, ghosts, stripe_units, at)


def test_equal_sums_confirm_what_was_sent_also_what_was_in_doubt() -> None:
    """12 of 12: the accepted one and the held one are both there."""
    finding = explain(12, batch(5), batch(7, State.HELD, 2))
    assert (finding.kind, finding.difference, finding.is_explained) == (Kind.MATCH, 0, True)
    assert [each.id for each in finding.confirmed] == ["b1", "b2"]


def test_doubt_that_stripe_does_not_hold_is_lost_and_the_rest_confirmed() -> None:
    """5 of 12: of the two, only the one in doubt makes up 7."""
    finding = explain(5, batch(5), batch(7, State.HELD, 2), at=TWO_DAYS)
    assert finding.kind is Kind.LOST
    assert [each.id for each in finding.confirmed] == ["b1"]
    assert finding.steps == (SendAgain(batch(7, State.HELD, 2), is_fresh=True),)
    assert not finding.is_explained


def test_doubt_is_preferred_to_what_stripe_accepted() -> None:
    """Both make up 5; Stripe said yes to the first."""
    finding = explain(5, batch(5), batch(5, State.HELD, 2))
    assert [step.batch.id for step in finding.steps] == ["b2"]


@pytest.mark.parametrize(
    ("age_us", "is_fresh"), [(2 * HOUR_US, False), (23 * HOUR_US - 1, False), (23 * HOUR_US, True)]
)
def test_within_stripes_memory_the_identifier_stays(age_us: int, is_fresh: bool) -> None:
    """Stripe refuses the old one if it has it after all; 23 hours later only a fresh one is counted once."""
    (step,) = explain(0, batch(5), at=Instant(NOON + age_us)).steps
    assert step == SendAgain(batch(5), is_fresh)


def test_what_was_sent_within_the_hour_is_in_transit() -> None:
    """At the boundary: an hour ago to the microsecond is no longer young."""
    young = batch(5, settled_at=Instant(LATER - HOUR_US + 1))
    assert explain(0, young).kind is Kind.IN_TRANSIT
    assert explain(0, replace(young, settled_at=Instant(LATER - HOUR_US))).kind is Kind.LOST
    assert explain(0, batch(5, State.UNCERTAIN, settled_at=None)).kind is Kind.IN_TRANSIT
    assert explain(3, batch(3), replace(young, id="b2")).confirmed == ()


def test_a_loss_among_young_ones_is_told_and_not_mended_yet() -> None:
    """More is missing than the young one could be: but which, is not proven before the hour is over."""
    finding = explain(0, batch(7), batch(5, number=2, settled_at=LATER))
    assert (finding.kind, finding.steps) == (Kind.LOST, ())


def test_a_sum_that_no_choice_makes_up_is_unclear_and_nothing_is_done() -> None:
    """4 of 5 + 7 are missing: no batch has 4 units."""
    finding = explain(8, batch(5), batch(7, number=2))
    assert (finding.kind, finding.steps, finding.confirmed) == (Kind.UNCLEAR, (), ())


def test_an_outage_in_the_middle_is_an_unbroken_run() -> None:
    """Five of nine batches in a row, of units that no three of them make up."""
    sent = [batch(2**number, number=number) for number in range(9)]
    missing = sum(each.units for each in sent[2:7])
    finding = explain(2**9 - 1 - missing, *sent)
    assert [step.batch.id for step in finding.steps] == ["b2", "b3", "b4", "b5", "b6"]


def test_what_is_older_than_35_days_is_not_sent_again() -> None:
    """Stripe takes no such time; a person carries it forward."""
    finding = explain(0, batch(5), at=Instant(NOON + 36 * DAY_US))
    assert (finding.kind, finding.steps) == (Kind.LOST, ())
    assert "--release" in finding.explanation


def test_what_was_never_taken_has_its_states_reason() -> None:
    """Refused, held for a person, waiting."""
    assert explain(5, batch(5), unsent(7, State.REJECTED)).explanation == "7 units rejected: told"
    assert explain(5, batch(5), unsent(7, State.HELD)).kind is Kind.HELD
    assert explain(5, batch(5), unsent(7, State.PENDING)).kind is Kind.IN_TRANSIT


def test_more_than_was_ever_sent_is_a_strangers() -> None:
    """No batch went out twice; also in an hour without any."""
    finding = explain(6, batch(5))
    assert (finding.kind, finding.difference, finding.steps) == (Kind.UNKNOWN_SENDER, 1, ())
    assert explain(3).kind is Kind.UNKNOWN_SENDER
    assert explain(-3).kind is not Kind.MATCH


def test_a_lost_one_that_comes_late_is_taken_back_while_stripe_can() -> None:
    """Both identifiers are counted: the later one goes, if Stripe received it within 23 hours."""
    again = batch(5, resend=1, first_sent_at=TWO_DAYS, settled_at=TWO_DAYS)
    soon, late = Instant(TWO_DAYS + 2 * HOUR_US), Instant(TWO_DAYS + 23 * HOUR_US)
    finding = explain(10, again, ghosts=(ghost(again),), at=soon)
    assert (finding.kind, finding.steps) == (Kind.DOUBLED, (TakeBack(again),))
    assert explain(10, again, ghosts=(ghost(again),), at=late).steps == ()
    back = ghost(again, RepairKind.CANCEL, soon)
    assert explain(10, again, ghosts=(ghost(again), back), at=soon).kind is Kind.IN_TRANSIT
    assert explain(5, again, ghosts=(ghost(again), back), at=late).kind is Kind.MATCH


def test_what_was_carried_to_the_next_invoice_may_stay_in_its_closed_hour() -> None:
    """It is on no invoice there."""
    moved = batch(5, timestamp_s=NOON_S + 10 * 86_400)
    assert explain(5, ghosts=(ghost(moved, RepairKind.CARRY),)).kind is Kind.CARRIED


def test_sums_that_a_float_can_not_hold_prove_nothing() -> None:
    """2^53 units."""
    assert explain(2**53, batch(2**53)).kind is Kind.UNCLEAR


states = st.sampled_from([State.ACCEPTED, State.CONFIRMED, State.HELD, State.UNCERTAIN, State.PENDING, State.REJECTED])


@given(st.lists(st.tuples(st.integers(1, 50), states, st.booleans(), st.booleans()), max_size=8), st.integers(-5, 5))
def test_no_step_brings_the_hour_above_the_ledger(
    rows: list[tuple[int, State, bool, bool]], strangers_units: int
) -> None:
    """Whatever is counted: what is confirmed and what is sent again never add up to more than was missing."""
    sent, counted = [], strangers_units
    for number, (units, state, is_counted, is_young) in enumerate(rows):
        may_be = state in DELIVERED or state in (State.HELD, State.UNCERTAIN)
        settled_at = None if state is State.UNCERTAIN else (LATER if is_young else NOON)
        first = NOON if may_be else None
        sent.append(batch(units, state, number, first_sent_at=first, settled_at=settled_at))
        counted += units if is_counted and may_be else 0
    finding = explain(counted, *sent)
    again = sum(step.batch.units for step in finding.steps)
    total = sum(each.units for each in sent if differences.may_be_counted(each))
    assert counted + again <= max(total, counted)
    assert again in (0, total - counted)
    assert not {each.id for each in finding.confirmed} & {step.batch.id for step in finding.steps}
    assert (finding.kind is Kind.MATCH) <= (finding.difference == 0)
