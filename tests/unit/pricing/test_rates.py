"""Dated versions: which one holds at an instant, above all at the boundary."""

import pytest

from billing.clock import Instant
from billing.money import Pico
from billing.pricing.rates import CostRate, Standing, in_order, next_start, standing, version_at
from tests.tables import at, cost_rate

MARCH_1, MARCH_2, MARCH_3 = at("2026-03-01"), at("2026-03-02"), at("2026-03-03")


def rate(start: str, *, number: int) -> CostRate:
    """A cost that begins at an instant; a greater number was recorded later."""
    return cost_rate("qwen3.5-9b", f"input 0.03 output 0.12 from {start}", number=number)


FIRST, SECOND = rate("2026-03-01", number=1), rate("2026-03-02", number=2)


@pytest.mark.parametrize(
    ("instant", "expected"),
    [
        (Instant(MARCH_1 - 1), None),
        (MARCH_1, FIRST),
        (Instant(MARCH_2 - 1), FIRST),
        (MARCH_2, SECOND),
        (Instant(MARCH_2 + 1), SECOND),
    ],
)
def test_a_version_holds_from_its_start_up_to_the_next_one(instant: Instant, expected: CostRate | None) -> None:
    """The boundary instant belongs to the new version."""
    assert version_at(in_order([SECOND, FIRST]), instant) == expected


def test_no_versions_hold_nothing() -> None:
    """An unknown subject has no version at any instant."""
    assert version_at((), MARCH_1) is None
    assert next_start((), MARCH_1) is None


def test_of_two_with_the_same_start_the_later_recorded_one_holds() -> None:
    """So a mistake is corrected by writing it anew, also before it begins."""
    mistake, correction = rate("2026-03-02", number=5), rate("2026-03-02", number=9)

    assert version_at(in_order([correction, FIRST, mistake]), MARCH_2) == correction


def test_of_two_recorded_at_once_the_one_with_the_later_id_holds() -> None:
    """Ids grow, so the order is never left to chance."""
    one, other = rate("2026-03-02", number=5), rate("2026-03-02", number=6)
    twin = CostRate(**{name: getattr(other, name) for name in CostRate.__slots__} | {"recorded_at": Instant(5)})

    assert version_at(in_order([twin, one]), MARCH_2) == twin


def test_a_backdated_version_holds_only_until_the_next_start() -> None:
    """A later record does not reach over a version that begins after it."""
    backdated = rate("2026-03-01T12", number=9)
    versions = in_order([FIRST, SECOND, backdated])

    assert version_at(versions, at("2026-03-01T11:59:59.999999")) == FIRST
    assert version_at(versions, at("2026-03-01T12")) == backdated
    assert version_at(versions, MARCH_2) == SECOND


def test_the_next_start_is_after_the_instant_and_never_at_it() -> None:
    """A version that begins now is no change to come."""
    versions = in_order([FIRST, SECOND])

    assert next_start(versions, Instant(MARCH_1 - 1)) == MARCH_1
    assert next_start(versions, MARCH_1) == MARCH_2
    assert next_start(versions, MARCH_2) is None


def test_a_version_is_scheduled_then_in_force_then_replaced() -> None:
    """Each stands where its interval puts it."""
    versions = in_order([FIRST, SECOND])
    seen = [standing(versions, FIRST, instant) for instant in (Instant(MARCH_1 - 1), MARCH_1, MARCH_2)]

    assert seen == [Standing.SCHEDULED, Standing.IN_FORCE, Standing.REPLACED]


def test_a_version_that_was_corrected_before_its_start_is_replaced_at_once() -> None:
    """It will never hold, so nobody should wait for it."""
    mistake, correction = rate("2026-03-03", number=5), rate("2026-03-03", number=9)
    versions = in_order([FIRST, mistake, correction])

    assert standing(versions, mistake, MARCH_1) is Standing.REPLACED
    assert standing(versions, correction, MARCH_1) is Standing.SCHEDULED
    assert standing(versions, correction, MARCH_3) is Standing.IN_FORCE


def test_parts_without_a_rate_cost_what_their_whole_does() -> None:
    """Cached input as input, reasoning as output."""
    costs = cost_rate("m", "input 0.03 output 0.12 request 0.001 from 2026-03-01").unit_prices

    assert (costs.input, costs.cached_input, costs.output, costs.reasoning) == (
        30_000,
        30_000,
        120_000,
        120_000,
    )
    assert costs.request == Pico(1_000_000_000)


def test_a_part_with_a_rate_of_zero_costs_nothing() -> None:
    """Zero is a rate, not the absence of one."""
    given = "input 0.03 cached_input 0 output 0.12 reasoning 0 from 2026-03-01"

    assert cost_rate("m", given).unit_prices.cached_input == 0
    assert cost_rate("m", given).unit_prices.reasoning == 0
