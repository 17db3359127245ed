"""What follows here from what Stripe says now: as a table, and as properties of order and repetition."""

from dataclasses import fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from billing.clock import DAY_US, SECOND_US, Instant
from billing.config import Dunning
from billing.ledger.accounts import Cause, Customer, Suspension
from billing.stripe_sync.effects import (
    Effect,
    Resume,
    Seen,
    SetPastDueSince,
    SetSubscription,
    Suspend,
    Unlink,
    decide,
)
from billing.stripe_sync.port import Invoice, Item, Subscription

NOW = Instant(1_772_366_400 * SECOND_US)
MARCH, APRIL = 1_772_323_200, 1_775_001_600
ITEM = Item("price_1", "mtr_1", MARCH, APRIL)
ACTIVE = Subscription("sub_1", "active", (ITEM,))
OPEN = Invoice("in_1", attempt_count=1, amount_remaining=500, due_at_s=None)
DUNNING = Dunning(grace_days=3)

KNOWN: dict[str, Any] = {
    "id": "cust_1",
    "name": "acme",
    "stripe_customer_id": "cus_1",
    "stripe_subscription_id": "sub_1",
    "stripe_subscription_status": "active",
    "period_start": Instant(MARCH * SECOND_US),
    "period_end": Instant(APRIL * SECOND_US),
    "past_due_since": None,
    "suspensions": (),
}
ALL: dict[str, Any] = {field.name: KNOWN.get(field.name) for field in fields(Customer)}
ACCOUNT = Customer(**ALL)
"""Whatever else an account has is no concern of Stripe's."""


def effects(
    *invoices: Invoice,
    account: Customer = ACCOUNT,
    status: str = "active",
    now: int = NOW,
    dunning: Dunning = DUNNING,
) -> tuple[Effect, ...]:
    """What follows, without the keeping of the subscription's state."""
    seen = Seen(is_deleted=False, subscription=replace(ACTIVE, status=status), open_invoices=invoices)
    decided = decide(account, seen, "mtr_1", dunning, Instant(now))
    return tuple(effect for effect in decided if not isinstance(effect, SetSubscription))


def suspended(cause: Cause, account: Customer = ACCOUNT) -> Customer:
    """The account, suspended for a cause."""
    return replace(account, suspensions=(*account.suspensions, Suspension(cause, "because", NOW)))


def test_nothing_changes_where_all_is_as_stripe_says() -> None:
    """An active subscription in its known period, and no open invoice."""
    assert decide(ACCOUNT, Seen(False, ACTIVE, ()), "mtr_1", DUNNING, NOW) == ()


def test_a_new_state_or_period_of_the_subscription_is_kept() -> None:
    """The period is that of the metered item, whatever other items there are."""
    other = Item("price_9", "", 1, 2)
    moved = Subscription("sub_1", "past_due", (other, replace(ITEM, period_start_s=APRIL, period_end_s=APRIL + 5)))
    start, end = Instant(APRIL * SECOND_US), Instant((APRIL + 5) * SECOND_US)
    assert SetSubscription("sub_1", "past_due", start, end) in decide(
        ACCOUNT, Seen(False, moved, ()), "mtr_1", DUNNING, NOW
    )
    bare = Subscription("sub_1", "active", ())
    assert decide(ACCOUNT, Seen(False, bare, ()), "mtr_1", DUNNING, NOW) == (
        SetSubscription("sub_1", "active", None, None),
    )


def test_a_deleted_customer_is_unlinked_and_suspended() -> None:
    """Once; nothing else of what Stripe says counts any more."""
    gone = Seen(True, None, (OPEN,))
    assert decide(ACCOUNT, gone, "mtr_1", DUNNING, NOW) == (
        Unlink(),
        Suspend(Cause.STRIPE_DELETED, "the billing account was deleted"),
    )
    assert decide(suspended(Cause.STRIPE_DELETED), gone, "mtr_1", DUNNING, NOW) == (Unlink(),)


def test_a_failed_payment_starts_the_grace_period() -> None:
    """Seen now for the first time; what is known already stays."""
    assert effects(OPEN) == (SetPastDueSince(NOW),)
    assert effects(OPEN, account=replace(ACCOUNT, past_due_since=Instant(NOW - DAY_US))) == ()
    assert effects(status="past_due") == (SetPastDueSince(NOW),)


def test_an_open_invoice_that_nobody_tried_to_collect_is_not_past_due() -> None:
    """Before its due date, or with nothing left to pay."""
    assert effects(replace(OPEN, attempt_count=0)) == ()
    assert effects(replace(OPEN, amount_remaining=0)) == ()
    due = replace(OPEN, attempt_count=0, due_at_s=NOW // SECOND_US)
    assert effects(due, now=NOW - 1) == ()
    assert effects(due) == (SetPastDueSince(NOW),)


def test_the_end_of_the_grace_period_suspends() -> None:
    """Three days to the microsecond."""
    account = replace(ACCOUNT, past_due_since=Instant(NOW - 3 * DAY_US))
    assert effects(OPEN, account=account, now=NOW - 1) == ()
    assert effects(OPEN, account=account) == (Suspend(Cause.UNPAID, "an invoice is unpaid"),)


def test_no_grace_suspends_at_once() -> None:
    """`grace_days = 0`."""
    assert effects(OPEN, dunning=Dunning(grace_days=0)) == (
        SetPastDueSince(NOW),
        Suspend(Cause.UNPAID, "an invoice is unpaid"),
    )


def test_when_stripe_gives_up_collecting_the_grace_period_ends() -> None:
    """`unpaid` suspends at once."""
    assert Suspend(Cause.UNPAID, "an invoice is unpaid") in effects(OPEN, status="unpaid")


def test_without_a_subscription_nothing_would_be_invoiced_so_nothing_is_served() -> None:
    """Canceled, expired or paused."""
    for status in ("canceled", "incomplete_expired", "paused"):
        assert effects(status=status) == (Suspend(Cause.UNPAID, "the subscription has ended"),)


def test_a_payment_clears_and_resumes_and_leaves_the_admins_suspension() -> None:
    """`unpaid` is lifted, `manual` never."""
    account = suspended(Cause.MANUAL, suspended(Cause.UNPAID, replace(ACCOUNT, past_due_since=Instant(NOW - 9))))
    assert effects(account=account) == (SetPastDueSince(None), Resume(Cause.UNPAID, "nothing is unpaid"))
    assert effects(account=suspended(Cause.MANUAL)) == ()


def test_one_of_two_invoices_paid_is_not_enough() -> None:
    """While one is open, the suspension holds."""
    account = suspended(Cause.UNPAID, replace(ACCOUNT, past_due_since=Instant(NOW - 9 * DAY_US)))
    assert effects(replace(OPEN, id="in_2"), account=account) == ()


def test_dunning_can_be_turned_off() -> None:
    """The debt is kept and shown; nobody is suspended."""
    off = Dunning(grace_days=0, action="none")
    assert effects(OPEN, status="unpaid", dunning=off) == (SetPastDueSince(NOW),)


def test_an_account_without_a_subscription_is_judged_by_its_invoices() -> None:
    """Linked, and not yet subscribed."""
    seen = Seen(False, None, (OPEN,))
    assert decide(ACCOUNT, seen, None, Dunning(grace_days=0), NOW)[0] == SetPastDueSince(NOW)


def applied(account: Customer, decided: tuple[Effect, ...], now: Instant) -> Customer:
    """The account as the ledger would keep it."""
    for effect in decided:
        match effect:
            case Unlink():
                account = replace(account, stripe_customer_id=None)
            case SetSubscription(subscription_id, status, start, end):
                account = replace(
                    account,
                    stripe_subscription_id=subscription_id,
                    stripe_subscription_status=status,
                    period_start=start,
                    period_end=end,
                )
            case SetPastDueSince(since):
                account = replace(account, past_due_since=since)
            case Suspend(cause, reason):
                account = replace(account, suspensions=(*account.suspensions, Suspension(cause, reason, now)))
            case Resume(cause, _):
                kept = tuple(each for each in account.suspensions if each.cause is not cause)
                account = replace(account, suspensions=kept)
    return account


statuses = st.sampled_from(["active", "past_due", "unpaid", "canceled", "paused", "trialing", "incomplete"])
invoices = st.lists(
    st.builds(Invoice, st.just("in_1"), st.integers(0, 3), st.integers(0, 9), st.none() | st.integers(MARCH, APRIL)),
    max_size=3,
)
worlds = st.builds(
    Seen, st.booleans(), st.none() | st.builds(Subscription, st.just("sub_1"), statuses, st.just((ITEM,))), invoices
)
held = st.lists(st.sampled_from(list(Cause)), unique=True, max_size=3)


@given(st.lists(worlds, min_size=1, max_size=4), held, st.integers(0, 5), st.integers(0, 9))
def test_the_last_word_of_stripes_decides_and_twice_changes_nothing(
    history: list[Seen], causes: list[Cause], grace_days: int, days: int
) -> None:
    """Whatever was seen before: applied once more it is empty, and `manual` is never touched."""
    account = ACCOUNT
    for cause in causes:
        account = suspended(cause, account)
    now = Instant(NOW + days * DAY_US)
    dunning = Dunning(grace_days=grace_days)
    for seen in history:
        account = applied(account, decide(account, seen, "mtr_1", dunning, now), now)
    again = decide(account, history[-1], "mtr_1", dunning, now)
    assert again == ((Unlink(),) if history[-1].is_deleted else ())
    assert (Cause.MANUAL in causes) == any(each.cause is Cause.MANUAL for each in account.suspensions)
    if not history[-1].is_deleted and not account.past_due_since:
        subscription = history[-1].subscription
        is_living = subscription is None or subscription.status in ("active", "trialing")
        assert not (is_living and any(each.cause is Cause.UNPAID for each in account.suspensions))
