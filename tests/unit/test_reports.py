"""Reports are the sums of the events, to the picounit, by whatever they are grouped, on both engines."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import clock, ids
from billing.clock import HOUR_US, Instant
from billing.errors import UsageError
from billing.ledger import accounts, events, migrate
from billing.ledger.database import Database
from billing.ledger.totals import Selection
from billing.money import Pico
from billing.reports import margin, usage
from tests.tables import at
from tests.unit.ledger.made import event

ALL = Selection()
UTC_ZONE = ZoneInfo("UTC")
NOON = at("2026-03-01T12")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database on the newest schema, without rows."""
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def conn(database: Database) -> Iterator[sa.Connection]:
    """A transaction that writes."""
    with database.writing() as connection:
        yield connection


def rows(conn: sa.Connection, *by: str, selection: Selection = ALL, zone: ZoneInfo = UTC_ZONE) -> list[dict[str, Any]]:
    """The rows of `weir usage --by …`."""
    return [usage.row(line, by, "usd") for line in usage.load(conn, selection, by, zone)]


def test_two_requests_are_one_row_with_their_sums(conn: sa.Connection) -> None:
    """By hand: 2 × 0.000117 usd for what cost 2 × 0.00009 usd."""
    acme = accounts.add_customer(conn, "acme", None, NOON, "test")
    events.append(conn, [event(NOON, customer_id=acme.id), event(at("2026-03-02"), customer_id=acme.id)], 0)
    assert rows(conn, "customer", "model") == [
        {
            "customer": "acme",
            "customer_id": acme.id,
            "model": "qwen3.5-9b",
            "requests": 2,
            "input_tokens": 2_000,
            "cached_input_tokens": 1_200,
            "image_input_tokens": 0,
            "audio_input_tokens": 0,
            "output_tokens": 1_000,
            "reasoning_tokens": 400,
            "cost": "0.000180000000",
            "amount": "0.000234000000",
            "currency": "usd",
        }
    ]


def test_no_usage_is_no_row(conn: sa.Connection) -> None:
    """However it is grouped."""
    for by in (("customer", "model"), ("day",), ("key",), ("day", "customer", "model", "key")):
        assert rows(conn, *by) == []


def test_sums_are_exact_where_integers_of_sql_end(conn: sa.Connection) -> None:
    """Four events of nearly 2⁶³ picounits, and one of a single picounit."""
    great = 2**63 - 1
    some = [event(NOON, cost_pico=great, amount_pico=great) for _ in range(4)]
    events.append(conn, [*some, event(NOON, cost_pico=1, amount_pico=1)], 0)
    (row,) = rows(conn, "model")
    assert row["amount"] == row["cost"] == "36893488.147419103229"
    assert 4 * great + 1 == 36_893_488_147_419_103_229


def test_a_correction_is_subtracted(conn: sa.Connection) -> None:
    """Also where it takes a total below zero, to the picounit."""
    events.append(conn, [event(NOON, amount_pico=1), event(NOON, amount_pico=-1_000_002)], 0)
    assert rows(conn, "model")[0]["amount"] == "-0.000001000001"


def test_each_group_is_a_row_of_its_own(conn: sa.Connection) -> None:
    """By customer, by model, by key and by all of them; other fields are null."""
    acme = accounts.add_customer(conn, "acme", None, NOON, "test")
    ben = accounts.add_customer(conn, "ben", None, NOON, "test")
    key, _ = accounts.create_key(conn, acme.id, "app", None, 0, 0, 0, None, NOON, "test")
    made = [
        event(NOON, customer_id=acme.id, api_key_id=key.id, model="a"),
        event(NOON, customer_id=acme.id, api_key_id=key.id, model="b"),
        event(NOON, customer_id=ben.id, api_key_id="key_gone", model="a"),
    ]
    events.append(conn, made, 3)

    def groups(*by: str) -> list[tuple[object, ...]]:
        return [(row["customer"], row["model"], row.get("key"), row["requests"]) for row in rows(conn, *by)]

    assert groups("model") == [(None, "a", None, 2), (None, "b", None, 1)]
    assert groups("customer") == [("acme", None, None, 2), ("ben", None, None, 1)]
    assert groups("key") == [(None, None, "key_gone", 1), (None, None, key.id, 2)]
    assert groups("customer", "model") == [("acme", "a", None, 1), ("acme", "b", None, 1), ("ben", "a", None, 1)]
    assert [row["key_name"] for row in rows(conn, "key")] == [None, "app"]
    assert groups("day") == [(None, None, None, 3)]


def test_shards_of_one_key_are_one_row(conn: sa.Connection) -> None:
    """How many workers wrote is nobody's business."""
    for shard in range(3):
        events.append(conn, [event(NOON)], shard)
    assert [row["requests"] for row in rows(conn, "key", "model")] == [3]


@pytest.mark.parametrize(
    ("since", "until", "requests"),
    [
        (None, None, 3),
        ("2026-03-01T12", None, 2),
        ("2026-03-01T12:59:59", None, 2),
        ("2026-03-01T13", None, 1),
        (None, "2026-03-01T12", 1),
        (None, "2026-03-01T12:00:01", 2),
        ("2026-03-01T12", "2026-03-01T13", 1),
    ],
)
def test_a_period_holds_its_start_and_not_its_end(
    conn: sa.Connection, since: str | None, until: str | None, requests: int
) -> None:
    """Events of 11:59:59.999999, 12:00 and 13:00; hours that the period cuts count whole."""
    events.append(conn, [event(Instant(NOON - 1)), event(NOON), event(Instant(NOON + HOUR_US))], 0)
    selection = usage.whole_hours(None if since is None else at(since), None if until is None else at(until), None)
    found = rows(conn, "model", selection=selection)
    assert sum(row["requests"] for row in found) == requests
    assert sum(row["requests"] for row in rows(conn, "day", selection=selection)) == requests


def test_one_customers_usage_is_only_theirs(conn: sa.Connection) -> None:
    """Grouped or not."""
    events.append(conn, [event(NOON, customer_id="cust_a"), event(NOON, customer_id="cust_b")], 0)
    for by in ("customer", "model", "day", "key"):
        assert [row["requests"] for row in rows(conn, by, selection=Selection(customer_id="cust_a"))] == [1]


def test_days_are_those_of_the_time_zone(conn: sa.Connection) -> None:
    """23:30 UTC is the next day in Berlin, and the day before in New York until 05:00 UTC."""
    events.append(
        conn, [event(at("2026-03-01T22:30")), event(at("2026-03-01T23:30")), event(at("2026-03-02T04:30"))], 0
    )

    def days(zone: str) -> dict[str, int]:
        return {row["day"]: row["requests"] for row in rows(conn, "day", zone=ZoneInfo(zone))}

    assert days("UTC") == {"2026-03-01": 2, "2026-03-02": 1}
    assert days("Europe/Berlin") == {"2026-03-01": 1, "2026-03-02": 2}
    assert days("America/New_York") == {"2026-03-01": 3}


def test_days_on_which_clocks_change_are_whole(conn: sa.Connection) -> None:
    """In Berlin 2026-03-29 has 23 hours and 2026-10-25 has 25; in Beirut midnight did not exist on 2026-03-29."""
    for first in ("2026-03-28T00", "2026-10-24T00"):
        events.append(conn, [event(Instant(at(first) + hour * HOUR_US)) for hour in range(72)], 0)
    found = {row["day"]: row["requests"] for row in rows(conn, "day", zone=ZoneInfo("Europe/Berlin"))}
    assert (found["2026-03-29"], found["2026-10-25"]) == (23, 25)
    beirut = {row["day"]: row["requests"] for row in rows(conn, "day", zone=ZoneInfo("Asia/Beirut"))}
    assert beirut["2026-03-29"] == 23
    assert sum(found.values()) == sum(beirut.values()) == 144


COUNTS = st.integers(0, 10**9)
MONEY = st.integers(0, 2**63 - 1)
EVENTS = st.lists(
    st.builds(
        lambda hours, model, key, tokens, cost, amount: event(
            Instant(NOON + hours * HOUR_US),
            model=model,
            api_key_id=key,
            output_tokens=tokens,
            cost_pico=cost,
            amount_pico=amount,
        ),
        st.integers(0, 60),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["key_1", "key_2"]),
        COUNTS,
        MONEY,
        MONEY,
    ),
    min_size=1,
    max_size=12,
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"])
BY = st.lists(st.sampled_from(["model", "customer", "key", "day", "hour", "month"]), min_size=1, unique=True)


@given(EVENTS, ZONES, BY)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_grouping_is_the_sum_of_its_events(
    database: Database, made: list[Any], zone_name: str, by: list[str]
) -> None:
    """Counted again in Python from the events alone: the same groups, the same sums."""
    customer_id, zone = ids.new_id("cust"), ZoneInfo(zone_name)
    recorded = [each._replace(id=ids.uuid7(), customer_id=customer_id) for each in made]
    expected: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for each in recorded:
        day = clock.to_datetime(Instant(each.window_start)).astimezone(zone).date()
        facts = {"day": day, "customer": customer_id, "model": each.model, "key": each.api_key_id}
        facts |= {"hour": clock.hour_start(each.window_start), "month": day.replace(day=1)}
        sums = expected[tuple(facts[group] if group in by else None for group in sorted(facts))]
        for index, value in enumerate((1, each.output_tokens, each.cost_pico, each.amount_pico)):
            sums[index] += value
    with database.writing() as conn:
        events.append(conn, recorded, 0)
        lines = usage.load(conn, Selection(customer_id=customer_id), by, zone)
    found = {
        (line.total.customer_id, line.day, line.hour, line.total.key_id, line.total.model, line.month): [
            line.total.requests,
            line.total.output_tokens,
            line.total.cost,
            line.total.amount,
        ]
        for line in lines
    }
    assert len(found) == len(lines)
    assert found == expected


@pytest.mark.parametrize(
    ("margin_pico", "revenue", "text"),
    [
        (30, 130, "23.08"),
        (40, 100, "40.00"),
        (0, 100, "0.00"),
        (100, 100, "100.00"),
        (-30, 100, "-30.00"),
        (1, 20_000, "0.01"),
        (1, 20_001, "0.00"),
        (-1, 20_000, "-0.01"),
        (-1, 20_001, "0.00"),
        (10**30, 3 * 10**30, "33.33"),
        (-(10**6), 1, "-100000000.00"),
        (0, 0, None),
        (-5, 0, None),
        (5, -10, None),
    ],
)
def test_a_percentage_is_rounded_half_away_from_zero(margin_pico: int, revenue: int, text: str | None) -> None:
    """In integers, whatever their size; there is none of no revenue."""
    assert margin.percentage(Pico(margin_pico), Pico(revenue)) == text


def test_a_margin_is_revenue_less_cost(conn: sa.Connection) -> None:
    """The 30 % markup of the events by hand: 0.000117 - 0.00009 = 0.000027, which is 23.08 % of the revenue."""
    events.append(conn, [event(NOON)], 0)
    (line,) = usage.load(conn, ALL, ("model",), UTC_ZONE)
    row = margin.row(line, ("model",), "usd")
    assert (row["revenue"], row["cost"], row["margin"], row["margin_pct"], row["currency"]) == (
        "0.000117000000",
        "0.000090000000",
        "0.000027000000",
        "23.08",
        "usd",
    )
    assert (row["requests"], row["output_tokens"]) == (1, 500)


@pytest.mark.parametrize("text", ["", "week", "model,,day", "customer;model"])
def test_an_unknown_group_is_refused_with_the_choice(text: str) -> None:
    """All four are named."""
    with pytest.raises(UsageError, match="choose among model, customer, key, day"):
        usage.parse_groups(text)


def test_groups_keep_their_order_and_come_once() -> None:
    """Blanks do no harm."""
    assert usage.parse_groups("day, model,day") == ("day", "model")


def test_an_empty_period_is_refused() -> None:
    """Rather than answered with nothing."""
    with pytest.raises(UsageError, match="--since is not before --until"):
        usage.whole_hours(NOON, NOON, None)
