"""What of a report is billed, and in which window; the recorder itself is tested where rows become durable."""

import pytest

from billing.clock import HOUR_US, SECOND_US
from billing.limits import TOKENS_PER_EVENT_MAX
from billing.usage import Usage
from proxy.settle import judged, window_start
from tests.unit.proxy.made import principal

HOUR = 492_324 * HOUR_US  # 2026-03-01T12:00:00Z
BEYOND = TOKENS_PER_EVENT_MAX + 1


@pytest.mark.parametrize(
    ("reported", "limit", "billed", "anomaly"),
    [
        (Usage(13, 44, 9, 14), None, Usage(13, 44, 9, 14), None),
        (Usage(13, 44, 9, 14), 44, Usage(13, 44, 9, 14), None),
        (Usage(0, 0), 1, Usage(0, 0), None),
        (Usage(13, 44, 13, 44), None, Usage(13, 44, 13, 44), None),
        (Usage(-13, 44), None, Usage(0, 44), "negative"),
        (Usage(13, -44, 0, -1), None, Usage(13, 0), "negative"),
        (Usage(13, 44, -1), None, Usage(13, 44), "negative"),
        (Usage(13, 44, 14), None, Usage(13, 44, 13), "cached_exceeds_input"),
        (Usage(-13, 44, 9), None, Usage(0, 44), "negative,cached_exceeds_input"),
        (Usage(13, 44, 0, 45), None, Usage(13, 44, 0, 44), "reasoning_exceeds_output"),
        (Usage(13, 44), 43, Usage(13, 43), "output_exceeds_limit"),
        (Usage(13, 44, 0, 44), 43, Usage(13, 43, 0, 43), "output_exceeds_limit"),
        (Usage(13, 44, 0, 45), 43, Usage(13, 43, 0, 43), "reasoning_exceeds_output,output_exceeds_limit"),
        (Usage(13, BEYOND), None, Usage(13, TOKENS_PER_EVENT_MAX), "output_exceeds_limit"),
        (Usage(13, BEYOND), 2 * BEYOND, Usage(13, TOKENS_PER_EVENT_MAX), "output_exceeds_limit"),
        (Usage(BEYOND, 44, 9, 14), None, Usage(TOKENS_PER_EVENT_MAX, 44, 9, 14), "input_implausible"),
        (
            Usage(BEYOND, 44, BEYOND),
            7,
            Usage(TOKENS_PER_EVENT_MAX, 7, TOKENS_PER_EVENT_MAX),
            "output_exceeds_limit,input_implausible",
        ),
        (Usage(13, 44, 2, 0, 6, 5), None, Usage(13, 44, 2, 0, 6, 5), None),
        (Usage(13, 44, 9, 0, 6, 5), None, Usage(13, 44, 9, 0, 4, 0), None),  # cached pictures are billed as cached
        (Usage(13, 44, 5, 0, 6, 5), None, Usage(13, 44, 5, 0, 6, 2), None),
        (Usage(13, 44, 0, 0, 13, 0), None, Usage(13, 44, 0, 0, 13, 0), None),
        (Usage(13, 44, 0, 0, 9, 5), None, Usage(13, 44, 0, 0, 9, 4), "media_exceeds_input"),
        (Usage(13, 44, 2, 0, 0, 2**70), None, Usage(13, 44, 2, 0, 0, 11), "media_exceeds_input"),
        (Usage(13, 44, 14, 0, 14), None, Usage(13, 44, 13), "cached_exceeds_input,media_exceeds_input"),
        (Usage(13, 44, 0, 0, -1, 3), None, Usage(13, 44, 0, 0, 0, 3), "negative"),
        (Usage(13, 44, 0, 0, 4, -4), None, Usage(13, 44, 0, 0, 4), "negative"),
        (Usage(13, 44, 0, 0, 4, 4), 43, Usage(13, 43, 0, 0, 4, 4), "output_exceeds_limit"),
        (
            Usage(BEYOND, 44, 9, 14, BEYOND - 9),
            None,
            Usage(TOKENS_PER_EVENT_MAX, 44, 9, 14, TOKENS_PER_EVENT_MAX - 9),
            "input_implausible",
        ),
        (Usage(TOKENS_PER_EVENT_MAX, 1), None, Usage(TOKENS_PER_EVENT_MAX, 1), None),
        (Usage(2**64 - 1, -(2**63)), None, Usage(TOKENS_PER_EVENT_MAX, 0), "negative,input_implausible"),
    ],
)
def test_what_can_not_be_true_is_billed_to_its_provable_part_and_marked(
    reported: Usage, limit: int | None, billed: Usage, anomaly: str | None
) -> None:
    """DESIGN §10, one row for each rule and some for their meetings."""
    assert judged(reported, limit) == (billed, anomaly)


@pytest.mark.parametrize(
    ("period", "after_s", "start_s"),
    [
        ((None, None), 0, 0),
        ((None, None), 3_599, 0),
        ((None, None), 3_600, 3_600),
        ((0, None), 1_800, 0),
        ((600, None), 599, 0),
        ((600, None), 600, 600),
        ((600, None), 3_599, 600),
        ((600, None), 3_600, 3_600),
        ((-600, 600), 599, 0),
        ((-600, 600), 600, 600),
        ((600, 1_200), 1_199, 600),
        ((600, 1_200), 1_200, 1_200),
        ((1_200, 600), 1_300, 1_200),
        ((7_200, 9_000), 1_800, 0),
    ],
)
def test_a_window_is_an_hour_or_what_a_period_leaves_of_it(
    period: tuple[int | None, int | None], after_s: int, start_s: int
) -> None:
    """The boundary instant belongs to the new period: nothing that Stripe is sent straddles it."""
    start, end = (None if second is None else HOUR + second * SECOND_US for second in period)
    who = principal(period=(start, end))
    assert window_start(who, HOUR + after_s * SECOND_US) == HOUR + start_s * SECOND_US


def test_the_microsecond_before_a_boundary_is_the_old_periods() -> None:
    """To the unit of time."""
    who = principal(period=(HOUR + 1, None))
    assert window_start(who, HOUR) == HOUR
    assert window_start(who, HOUR + 1) == HOUR + 1
    assert window_start(who, HOUR - 1) == HOUR - HOUR_US
