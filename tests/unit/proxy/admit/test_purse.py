"""A purse never holds more than was leased, and every hold ends as what its request came to."""

from typing import Any

import pytest

from billing.clock import HOUR_US, Instant
from billing.credit.holds import Need, Part
from billing.ledger.leases import LEASE_AGE_US, Addition
from billing.money import Pico
from proxy.admit.purse import IDLE_NS, LEASE_NS, QUIET_NS, Hold, Moment, Purse

NOON = Moment(1_772_366_400_000_000, 5_000_000_000)


def later(*, ns: int = 0, us: int = 0) -> Moment:
    """An instant after noon, on each of the two clocks."""
    return Moment(NOON.at + us, NOON.ns + ns)


def added(lease_id: str, amount: int, *, rank: int = 50, expires_at: int | None = None) -> Addition:
    """A lease, or its growth."""
    expiry = None if expires_at is None else Instant(expires_at)
    return Addition(lease_id, Pico(amount), (rank, expiry is None, expiry or 0, False, 0, lease_id), expiry)


def purse(*additions: Addition) -> Purse:
    """A purse with these leases, taken at noon."""
    made = Purse("cust_acme")
    made.add(additions, NOON)
    return made


def need(fixed: int, per_token: int = 0, tokens: int = 1) -> Need:
    """A request."""
    return Need(Pico(fixed), Pico(per_token), tokens)


def held(of: Purse, amount: int, now: Moment = NOON) -> Hold:
    """A hold that must be possible."""
    found = of.hold(need(amount), now)
    assert found is not None
    return found


def test_what_is_held_is_not_free_and_what_was_not_used_is_free_again() -> None:
    acme = purse(added("one", 100))
    first = held(acme, 60)
    assert acme.free(NOON) == 40
    assert acme.hold(need(41), NOON) is None
    second = held(acme, 40)
    assert acme.settle(first, 25, NOON) == (Part("one", Pico(25)),)
    assert acme.free(NOON) == 35
    acme.void(second, NOON)
    assert acme.free(NOON) == 75


def test_a_hold_is_the_worst_case_and_says_how_many_tokens_that_is() -> None:
    acme = purse(added("one", 1_000))
    hold = acme.hold(need(100, 5, 20), NOON)
    assert hold is not None
    assert (hold.amount, hold.tokens) == (200, 20)


@pytest.mark.parametrize(
    ("free", "tokens"), [(104, None), (105, 1), (109, 1), (110, 2), (199, 19), (200, 20), (900, 20)]
)
def test_a_clamped_hold_has_as_many_tokens_as_are_affordable(free: int, tokens: int | None) -> None:
    acme = purse(added("one", free))
    hold = acme.hold_clamped(need(100, 5, 20), NOON)
    assert (None if hold is None else hold.tokens) == tokens
    assert acme.free(NOON) == free - (0 if tokens is None else 100 + 5 * tokens)


def test_a_request_that_costs_nothing_needs_no_lease() -> None:
    acme = purse()
    hold = acme.hold(need(0), NOON)
    assert hold is not None
    assert acme.settle(hold, 0, NOON) == ()


def test_leases_are_held_and_paid_in_burn_order_whatever_order_they_came_in() -> None:
    acme = purse(added("late", 10, rank=9), added("early", 10, rank=1))
    acme.add([added("middle", 10, rank=5)], NOON)
    hold = held(acme, 25)
    assert [(piece.lease_id, share) for piece, share in hold.parts] == [("early", 10), ("middle", 10), ("late", 5)]
    assert acme.settle(hold, 12, NOON) == (Part("early", Pico(10)), Part("middle", Pico(2)))
    assert acme.free(NOON) == 18


def test_what_exceeds_a_hold_is_laid_on_what_is_free_and_the_rest_is_missing() -> None:
    """Never on what other requests hold; a lease appears once."""
    acme = purse(added("one", 100))
    held(acme, 50)
    assert acme.settle(held(acme, 20), 45, NOON) == (Part("one", Pico(45)),)
    assert acme.settle(held(acme, 5), 30, NOON) == (Part("one", Pico(5)),)
    assert acme.free(NOON) == 0


def test_a_hold_ends_once() -> None:
    acme = purse(added("one", 100))
    hold = held(acme, 50)
    acme.void(hold, NOON)
    with pytest.raises(AssertionError, match="a hold ends once"):
        acme.settle(hold, 1, NOON)


def test_nothing_is_held_on_a_lease_that_ran_out_but_what_was_is_settled_on_it() -> None:
    acme = purse(added("one", 100))
    hold = held(acme, 50)
    assert acme.hold(need(1), later(ns=LEASE_NS - 1)) is not None
    assert acme.hold(need(1), later(ns=LEASE_NS)) is None
    assert acme.free(later(ns=LEASE_NS)) == 0
    assert acme.settle(hold, 50, later(ns=LEASE_NS)) == (Part("one", Pico(50)),)


def test_nothing_is_held_on_credit_that_expired() -> None:
    """From the instant of its expiry on."""
    acme = purse(added("one", 100, expires_at=NOON.at + 10), added("two", 5))
    assert acme.free(later(us=9)) == 105
    assert acme.free(later(us=10)) == 5


def test_a_clock_that_goes_back_does_not_prolong_a_lease() -> None:
    acme = purse(added("one", 100))
    assert acme.hold(need(1), later(ns=LEASE_NS, us=-HOUR_US)) is None


def test_a_renewed_lease_holds_on_from_when_the_ledger_was_asked() -> None:
    acme = purse(added("one", 100))
    acme.renewed({"one": "cust_acme"}, NOON.ns + 7)
    assert acme.free(later(ns=LEASE_NS + 6)) == 100
    assert acme.free(later(ns=LEASE_NS + 7)) == 0


def test_a_lease_that_the_ledger_closed_is_not_held_on_but_its_requests_keep_it() -> None:
    acme = purse(added("one", 100), added("two", 10))
    hold = held(acme, 50)
    acme.renewed({"two": "cust_acme"}, NOON.ns)
    assert acme.free(NOON) == 10
    assert acme.settle(hold, 55, NOON) == (Part("one", Pico(50)), Part("two", Pico(5)))


def test_a_growth_that_crosses_with_giving_back_counts_as_a_growth() -> None:
    """The ledger was asked for 50 more before it was told that 80 came back: together 70, whatever it saw first."""
    acme = purse(added("one", 100))
    hold = held(acme, 20)
    assert acme.give_back(["one", "other"]) == [Part("one", Pico(80))]
    acme.add([added("one", 50)], NOON)
    assert acme.free(NOON) == 50
    acme.void(hold, NOON)
    assert acme.free(NOON) == 70


def test_who_uses_all_gives_back_nothing_but_answers() -> None:
    acme = purse(added("one", 100))
    held(acme, 100)
    assert acme.give_back(["one"]) == [Part("one", Pico(0))]


def test_an_idle_lease_is_closed_and_one_in_use_is_not() -> None:
    acme = purse(added("one", 100), added("two", 100, rank=60))
    hold = held(acme, 10)
    assert acme.retire(later(ns=IDLE_NS - 1)) == ([], [])
    assert acme.retire(later(ns=IDLE_NS)) == (["two"], [])
    acme.settle(hold, 10, later(ns=IDLE_NS))
    assert acme.retire(later(ns=2 * IDLE_NS - 1)) == ([], [])
    assert acme.retire(later(ns=2 * IDLE_NS)) == (["one"], [])
    assert acme.slices == []


@pytest.mark.parametrize(
    ("given", "passed_us"),
    [({"expires_at": NOON.at + 10}, 10), ({}, LEASE_AGE_US), ({}, -1)],
    ids=["expired", "old", "a clock that went back"],
)
def test_a_lease_that_is_over_gives_back_at_once_and_closes_when_its_requests_are_recorded(
    given: dict[str, Any], passed_us: int
) -> None:
    acme = purse(added("one", 100, **given))
    hold = held(acme, 10)
    assert acme.retire(later(us=passed_us)) == ([], [Part("one", Pico(90))])
    assert acme.retire(later(us=passed_us)) == ([], [])
    acme.settle(hold, 10, later(us=passed_us, ns=5))
    assert acme.retire(later(us=passed_us, ns=4 + QUIET_NS)) == ([], [])
    assert acme.retire(later(us=passed_us, ns=5 + QUIET_NS)) == (["one"], [])
