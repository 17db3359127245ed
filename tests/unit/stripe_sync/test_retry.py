"""What each answer means: a table, and the life of a batch through answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import DAY_US, HOUR_US, MINUTE_US, SECOND_US, Instant
from billing.ledger.outbox import Batch, Claim, State
from billing.stripe_sync import retry
from billing.stripe_sync.retry import Again, Answer, Decision, Done, Hold, Rejected

NOW = Instant(1_772_366_400 * SECOND_US)
DUPLICATE = "An event already exists with identifier weir-1."

CASES: tuple[tuple[str, Answer, type[Decision], bool], ...] = (
    ("accepted", Answer(200), Done, False),
    ("known already: the identifier did its work", Answer(400, "invalid_request_error", "", DUPLICATE), Done, False),
    ("known already, as v2 says it", Answer(400, "", "duplicate_meter_event", "A meter event with…"), Done, False),
    ("no answer", Answer(None, message="ReadTimeout"), Again, True),
    ("no connection", Answer(None, message="NewConnectionError", has_left=False), Again, False),
    ("server error", Answer(500, "api_error"), Again, True),
    ("service unavailable", Answer(503), Again, True),
    ("a proxy's redirect is no word of Stripe's", Answer(302), Again, True),
    ("too many requests", Answer(429, code="rate_limit"), Again, False),
    ("too many requests, said with 400", Answer(400, "invalid_request_error", "rate_limit"), Again, False),
    ("concurrent", Answer(409, code="too_many_concurrent_requests"), Again, False),
    ("wrong key", Answer(401), Again, False),
    ("forbidden", Answer(403), Again, False),
    (
        "unknown customer",
        Answer(400, "invalid_request_error", "resource_missing", "No such customer: 'cus_x'"),
        Rejected,
        False,
    ),
    (
        "no meter",
        Answer(400, "invalid_request_error", "", 'No active meter found for event name "x".'),
        Rejected,
        False,
    ),
    ("not found", Answer(404), Rejected, False),
    ("the key was used for other parameters", Answer(400, "idempotency_error"), Hold, False),
)


@pytest.mark.parametrize(("answer", "expected", "is_unknown"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_each_answer_has_one_meaning(answer: Answer, expected: type[Decision], is_unknown: bool) -> None:
    """Delivered, again, held or refused; and whether the attempt may have been counted."""
    decision = retry.decide(1, answer, 0)
    assert type(decision) is expected
    if isinstance(decision, Again):
        assert decision.is_unknown is is_unknown
        assert decision.is_configuration is (answer.status in (401, 403))
        assert decision.is_key_spent is (answer.status in (302, 500, 503))


@pytest.mark.parametrize("answer", [Answer(None), Answer(500), Answer(302)])
def test_an_unknown_outcome_is_repeated_for_less_than_23_hours(answer: Answer) -> None:
    """At the boundary it is held: Stripe forgets identifiers after 24 hours."""
    assert isinstance(retry.decide(9, answer, 23 * HOUR_US - 1), Again)
    assert isinstance(retry.decide(9, answer, 23 * HOUR_US), Hold)


@pytest.mark.parametrize("answer", [Answer(429), Answer(409), Answer(401), Answer(None, has_left=False)])
def test_what_was_provably_not_counted_is_tried_for_ever(answer: Answer) -> None:
    """Days of a wrong key or no network hold nothing."""
    assert isinstance(retry.decide(9_999, answer, 30 * DAY_US), Again)


def test_delays_double_up_to_five_minutes() -> None:
    """1, 2, 4 … 256, 300, 300 seconds."""
    delays = [retry.backoff_us(attempt) // SECOND_US for attempt in (1, 2, 3, 8, 9, 10, 10_000)]
    assert delays == [1, 2, 4, 128, 256, 300, 300]


def test_a_batch_may_be_sent_until_its_usage_is_35_days_old() -> None:
    """Then Stripe would refuse the timestamp; it is held, never sent or not."""
    oldest = (NOW - 35 * DAY_US) // SECOND_US
    assert retry.may_send(NOW, None, oldest) is None
    assert retry.may_send(NOW, None, oldest - 1) == Hold(retry.TOO_OLD)


def test_a_batch_in_doubt_may_be_sent_for_23_hours() -> None:
    """From the first attempt that may have been counted."""
    assert retry.may_send(NOW, NOW - 23 * HOUR_US + 1, NOW // SECOND_US) is None
    assert isinstance(retry.may_send(NOW, NOW - 23 * HOUR_US, NOW // SECOND_US), Hold)


def test_a_clock_that_went_back_proves_no_age() -> None:
    """An hour's disagreement of clocks is borne; more, and the age is unknown."""
    assert retry.may_send(NOW, NOW + HOUR_US, NOW // SECOND_US) is None
    assert isinstance(retry.may_send(NOW, NOW + HOUR_US + 1, NOW // SECOND_US), Hold)


def test_an_answer_is_one_line_for_the_operator() -> None:
    """Status, code and sentence, however long and broken the sentence was."""
    assert Answer(429, "invalid_request_error", "rate_limit", "Too\nmany").text == "429 rate_limit: Too many"
    assert Answer(None, message="ReadTimeout").text == "no answer: ReadTimeout"
    assert Answer(500).text == "500"
    assert len(Answer(400, message="x" * 1_000).text) == 300


def claimed(*, first_sent_at: int = NOW, attempts: int = 1, was_uncertain: bool = False) -> Claim:
    """A batch on its way."""
    batch = Batch(
        id="weir-1",
        customer_id="cust_1",
        seq=1,
        stripe_customer_id="cus_1",
        event_name="weir_usage_micro",
        idempotency_key="weir-1",
        window_start=NOW,
        timestamp_s=NOW // SECOND_US,
        units=1,
        carry_in_pico=0,
        carry_pico=0,
        covers="[]",
        state=State.SENDING,
        attempts=attempts,
        created_at=NOW,
        first_sent_at=Instant(first_sent_at),
        next_attempt_at=NOW,
        settled_at=None,
        last_answer=None,
    )
    return Claim(batch, was_uncertain)


def test_a_delivery_is_recorded_with_its_time() -> None:
    """Accepted, settled now, the answer kept."""
    outcome = retry.outcome_of(claimed(), Answer(200), Instant(NOW + SECOND_US))
    assert (outcome.state, outcome.settled_at, outcome.last_answer) == (State.ACCEPTED, NOW + SECOND_US, "200")
    assert outcome.first_sent_at == NOW


def test_what_stripe_did_not_count_is_pending_again_as_if_never_sent() -> None:
    """After a 429 the 23 hours do not run."""
    outcome = retry.outcome_of(claimed(), Answer(429), NOW)
    assert (outcome.state, outcome.first_sent_at, outcome.settled_at) == (State.PENDING, None, None)
    assert outcome.next_attempt_at == NOW + SECOND_US
    assert outcome.idempotency_key == "weir-1"


def test_doubt_stays_whatever_a_later_answer_says() -> None:
    """A lost answer, then a 429: the first attempt may still have been counted."""
    outcome = retry.outcome_of(claimed(first_sent_at=NOW - MINUTE_US, was_uncertain=True), Answer(429), NOW)
    assert (outcome.state, outcome.first_sent_at) == (State.UNCERTAIN, NOW - MINUTE_US)


def test_a_refusal_after_doubt_keeps_the_doubt() -> None:
    """Sent again later, it is judged by the age of the first attempt."""
    assert retry.outcome_of(claimed(was_uncertain=True), Answer(404), NOW).first_sent_at == NOW
    refused = retry.outcome_of(claimed(), Answer(404), NOW)
    assert (refused.state, refused.first_sent_at, refused.settled_at) == (State.REJECTED, None, NOW)


def test_a_lost_answer_keeps_its_key_and_a_server_error_spends_it() -> None:
    """The first request may still run under the key; a 500 would be repeated under it for a day."""
    assert retry.outcome_of(claimed(attempts=3), Answer(None), NOW).idempotency_key == "weir-1"
    assert retry.outcome_of(claimed(attempts=3), Answer(500), NOW).idempotency_key == "weir-1.3"


def test_what_is_held_says_why() -> None:
    """The reason takes the place of the answer."""
    outcome = retry.outcome_of(claimed(first_sent_at=NOW - DAY_US, was_uncertain=True), Answer(None), NOW)
    assert (outcome.state, outcome.settled_at) == (State.HELD, NOW)
    assert outcome.last_answer == "its outcome was still unknown 23 hours after it was first sent"


answers = st.builds(
    Answer,
    st.one_of(st.none(), st.integers(100, 599)),
    st.sampled_from(["", "invalid_request_error", "idempotency_error", "api_error"]),
    st.sampled_from(["", "rate_limit", "lock_timeout", "resource_missing"]),
    st.just(""),
    st.booleans(),
)


@given(answers, st.integers(1, 10**6), st.integers(0, 40 * DAY_US), st.booleans())
def test_nothing_that_may_have_been_counted_is_ever_taken_for_never_sent(
    answer: Answer, attempts: int, age: int, was_uncertain: bool
) -> None:
    """Over every answer: doubt is only dropped with proof, and never repeated after 23 hours."""
    claim = claimed(first_sent_at=NOW - age, attempts=attempts, was_uncertain=was_uncertain)
    outcome = retry.outcome_of(claim, answer, NOW)
    proves = answer.status in (401, 403, 409, 429) or (answer.status is None and not answer.has_left)
    is_other_request = answer.status == 400 and answer.kind == "idempotency_error"
    proves = proves or (answer.status == 400 and answer.code in ("rate_limit", "lock_timeout"))
    refused = answer.status is not None and 400 <= answer.status < 500 and not is_other_request
    if was_uncertain or not (proves or refused):
        assert outcome.first_sent_at == NOW - age
    if outcome.state is State.UNCERTAIN and not was_uncertain:
        assert age < retry.RESEND_AGE_US_MAX
    assert (outcome.state is State.PENDING) == (outcome.first_sent_at is None and outcome.settled_at is None)
