"""Days and months of time zones, on the days on which clocks change."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import Per, Period, day_start, period_of
from billing.clock import HOUR_US, Instant, instant_text, parse_instant, to_datetime

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe"),
    *("America/St_Johns", "America/Sao_Paulo", "Asia/Beirut", "America/Havana", "Pacific/Apia", "Africa/Cairo"),
)
EARLIEST = int(datetime(1987, 1, 1, tzinfo=UTC).timestamp()) * 10**6
LATEST = int(datetime(2037, 1, 1, tzinfo=UTC).timestamp()) * 10**6


def at(text: str) -> Instant:
    """An instant."""
    return parse_instant(text, Instant(0))


def period(per: str, instant: str, zone: str) -> tuple[str, str]:
    """The period that holds an instant, as texts."""
    found = period_of(Per(per), at(instant), ZoneInfo(zone))
    return instant_text(found.start), instant_text(found.end)


@pytest.mark.parametrize(
    ("zone", "instant", "start", "hours"),
    [
        ("UTC", "2026-11-23T12:00:00Z", "2026-11-23T00:00:00Z", 24),
        ("Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", 25),
        ("America/New_York", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", 23),
        ("America/New_York", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", 25),
        ("Asia/Kolkata", "2026-11-23T18:30:00Z", "2026-11-23T18:30:00Z", 24),
        ("Asia/Kolkata", "2026-11-23T18:29:59Z", "2026-11-22T18:30:00Z", 24),
        ("Asia/Beirut", "2026-03-29T12:00:00Z", "2026-03-28T22:00:00Z", 23),  # midnight does not come: it jumps to 1
        ("America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", 23),
        ("America/Havana", "2026-11-01T12:00:00Z", "2026-11-01T04:00:00Z", 25),  # midnight comes twice
    ],
)
def test_a_day_is_as_long_as_the_zones_clocks_make_it(zone: str, instant: str, start: str, hours: int) -> None:
    found = period_of(Per.DAY, at(instant), ZoneInfo(zone))
    assert (instant_text(found.start), found.end - found.start) == (start, hours * HOUR_US)


def test_a_day_of_a_half_hour_change_has_half_an_hour_less() -> None:
    found = period_of(Per.DAY, at("2026-10-04T05:00:00Z"), ZoneInfo("Australia/Lord_Howe"))
    assert found.end - found.start == 23 * HOUR_US + HOUR_US // 2


def test_months_end_when_the_calendar_says() -> None:
    assert period("month", "2026-01-31T23:59:59Z", "UTC") == ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    assert period("month", "2028-02-29T12:00:00Z", "UTC") == ("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z")
    assert period("month", "2027-02-28T23:59:59Z", "UTC") == ("2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z")
    assert period("month", "2026-12-31T23:00:00Z", "Europe/Berlin") == ("2026-12-31T23:00:00Z", "2027-01-31T23:00:00Z")
    assert period("month", "2026-10-31T23:30:00Z", "Europe/Berlin")[0] == "2026-10-31T23:00:00Z"
    assert period("month", "2026-10-15T00:00:00Z", "Europe/Berlin") == ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z")


def test_a_date_that_a_zone_left_out_is_no_day() -> None:
    """Samoa had no 30 December 2011."""
    zone = ZoneInfo("Pacific/Apia")
    assert day_start(date(2011, 12, 30), zone) == day_start(date(2011, 12, 31), zone) == at("2011-12-30T10:00:00Z")
    assert period("day", "2011-12-30T09:59:59Z", "Pacific/Apia") == ("2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z")
    assert period("day", "2011-12-30T10:00:00Z", "Pacific/Apia") == ("2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z")


def test_an_hour_that_shows_yesterdays_date_again_belongs_to_the_day_that_has_begun() -> None:
    """Newfoundland's clocks went from 00:01 back to 23:01."""
    assert period("day", "2010-11-07T02:30:30Z", "America/St_Johns")[0] == "2010-11-07T02:30:00Z"
    assert period("day", "2010-11-07T03:15:00Z", "America/St_Johns")[0] == "2010-11-07T02:30:00Z"


@given(st.integers(EARLIEST, LATEST), st.sampled_from(ZONES), st.sampled_from(Per))
def test_periods_follow_one_another_without_gap_or_overlap(instant: int, name: str, per: Per) -> None:
    zone = ZoneInfo(name)
    found = period_of(per, instant, zone)
    assert found.holds(instant)
    assert found == period_of(per, found.start, zone) == period_of(per, found.end - 1, zone)
    assert period_of(per, found.end, zone).start == found.end
    assert period_of(per, found.start - 1, zone).end == found.start
    assert not found.holds(found.end)


@given(st.integers(EARLIEST, LATEST), st.sampled_from(ZONES))
def test_a_month_is_made_of_its_days(instant: int, name: str) -> None:
    zone = ZoneInfo(name)
    month = period_of(Per.MONTH, instant, zone)
    assert period_of(Per.DAY, month.start, zone).start == month.start
    assert period_of(Per.DAY, month.end - 1, zone).end == month.end


@given(st.dates(date(1987, 1, 1), date(2036, 12, 31)), st.sampled_from(ZONES))
def test_a_day_begins_with_its_first_instant(day: date, name: str) -> None:
    """Found by walking: no instant of the 27 hours before has the date, or a later one."""
    zone = ZoneInfo(name)
    begun = to_datetime(day_start(day, zone))
    assert begun.astimezone(zone).date() >= day
    before = (begun - timedelta(minutes=step, microseconds=1) for step in range(0, 27 * 60, 7))
    assert all(each.astimezone(zone).date() < day for each in before)


def test_a_period_is_half_open() -> None:
    found = Period(Instant(1), Instant(3))
    assert [found.holds(each) for each in range(5)] == [False, True, True, False, False]
