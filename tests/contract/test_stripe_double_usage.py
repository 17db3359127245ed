"""The Stripe double's usage: meters, meter events by all three ways, summaries, adjustments, rejections.

Outside anchors: sentences and shapes from Stripe's documentation and from the field (captured error bodies),
the SDK's own types, and sums worked out by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, cast

import pytest
import stripe

from tests.contract.stripe_double_support import DAY_S, HOUR_S, NOW, World, client_of, receiving, world


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


# -- meters ---


def test_a_meter_has_stripes_defaults_and_only_its_name_changes(w: World) -> None:
    meter = w.client.v1.billing.meters.retrieve(w.meter)
    assert meter.customer_mapping.event_payload_key == "stripe_customer_id"
    assert meter.value_settings.event_payload_key == "value"
    assert meter.event_time_window is None
    assert w.client.v1.billing.meters.update(w.meter, {"display_name": "New"}).display_name == "New"
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.billing.meters.update(w.meter, cast(Any, {"event_name": "other"}))
    assert w.double.violations.pop().endswith("event_name: unknown name")


def test_one_active_meter_per_event_name(w: World) -> None:
    asked: Any = {"display_name": "S", "event_name": "spend", "default_aggregation": {"formula": "sum"}}
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.billing.meters.create(asked)
    w.client.v1.billing.meters.deactivate(w.meter)
    second = w.client.v1.billing.meters.create(asked)
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.billing.meters.reactivate(w.meter)
    active = w.client.v1.billing.meters.list({"status": "active"})
    assert [each.id for each in active.data] == [second.id]


# -- v1 meter events ---


def test_an_accepted_event_is_echoed_without_an_id_and_counts_exactly(w: World) -> None:
    made = w.use("25", "e1")
    assert made.object == "billing.meter_event"
    assert "id" not in made
    assert (made.identifier, made.timestamp, made.payload["value"]) == ("e1", NOW, "25")
    w.use("999999999999999", "e2")
    w.use("999999999999999", "e3")
    w.use("-1", "e4")
    assert w.double.meter_total(w.customer, "spend") == 25 + 2 * 999_999_999_999_999 - 1
    assert (w.double.meter_events[0].identifier, w.double.meter_events[0].value) == ("e1", Decimal(25))


def test_an_event_without_identifier_gets_one(w: World) -> None:
    payload = {"stripe_customer_id": w.customer, "value": "1"}
    made = w.client.v1.billing.meter_events.create({"event_name": "spend", "payload": payload})
    assert len(made.identifier) == 36
    assert made.timestamp == NOW


def test_a_known_identifier_is_refused_in_the_words_that_the_field_reports(w: World) -> None:
    w.use("25", "e1")
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.use("25", "e1", key="a new key")
    error = refused.value
    assert (error.http_status, error.code) == (400, None)
    assert error.user_message == "An event already exists with identifier e1."
    assert error.headers is not None
    assert error.headers["Stripe-Should-Retry"] == "false"
    assert w.double.meter_total() == 25


def test_an_identifier_is_forgotten_after_exactly_24_hours_and_then_counts_twice(w: World) -> None:
    w.use("25", "e1", at=NOW)
    w.double.clock.advance(DAY_S - 1)
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        w.use("25", "e1", at=NOW, key="k2")
    w.double.clock.advance(1)
    w.use("25", "e1", at=NOW, key="k3")
    assert w.double.meter_total() == 50


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            "1234567890123456",
            "The value in the event payload can have at most 15 digits. Received 1234567890123456.",
        ),
        ("1E-7", "must be a number"),
        ("ten", "must be a number"),
        ("", "must be a number"),
        ("NaN", "must be a number"),
        ("1,5", "must be a number"),
    ],
)
def test_values_are_plain_decimals_of_at_most_15_digits(w: World, value: str, sentence: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match=sentence):
        w.use(value, "e1")
    w.use("0.123456789012345", "e2")
    assert w.double.meter_events[0].value == Decimal("0.123456789012345")


@pytest.mark.parametrize(
    ("offset_s", "is_taken"),
    [(-35 * DAY_S, True), (-35 * DAY_S - 1, False), (300, True), (301, False)],
)
def test_timestamps_reach_35_days_back_and_5_minutes_ahead(w: World, offset_s: int, is_taken: bool) -> None:
    if is_taken:
        assert w.use("1", "e1", at=NOW + offset_s).timestamp == NOW + offset_s
    else:
        with pytest.raises(stripe.InvalidRequestError) as refused:
            w.use("1", "e1", at=NOW + offset_s)
        assert refused.value.param == "timestamp"
    assert len(w.double.meter_events) == int(is_taken)


def test_the_checks_run_in_stripes_order(w: World) -> None:
    """A request breaks every rule; the first in the order answers, and its repair uncovers the next."""
    w.use("1", "known")
    payload = {"stripe_customer_id": "cus_no", "value": "12345678901234567"}
    asked: Any = {"event_name": "no", "payload": payload, "identifier": "known", "timestamp": 1}
    steps: list[tuple[Any, str]] = [
        ({}, 'No active meter found for event name "no"'),
        ({"event_name": "spend"}, "No such customer: 'cus_no'"),
        ({"payload": {**payload, "stripe_customer_id": w.customer}}, "at most 15 digits"),
        ({"payload": {"stripe_customer_id": w.customer, "value": "1"}}, "35 calendar days"),
        ({"timestamp": NOW}, "already exists with identifier known"),
    ]
    for repair, sentence in steps:
        asked.update(repair)
        with pytest.raises(stripe.InvalidRequestError, match=sentence):
            w.client.v1.billing.meter_events.create(asked)
    asked["identifier"] = "new"
    assert w.client.v1.billing.meter_events.create(asked).identifier == "new"


def test_a_deleted_customer_and_a_deactivated_meter_take_no_usage(w: World) -> None:
    other = w.client.v1.customers.create({"name": "gone"}).id
    w.double.delete_customer(other)
    w.customer, kept = other, w.customer
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as refused:
        w.use("1", "e1")
    assert refused.value.code == "resource_missing"
    assert refused.value.http_status == 400
    w.customer = kept
    w.client.v1.billing.meters.deactivate(w.meter)
    with pytest.raises(stripe.InvalidRequestError, match="No active meter found"):
        w.use("1", "e2")


def test_two_events_of_one_customer_and_meter_at_once_are_409_and_of_two_customers_are_not(w: World) -> None:
    w.double.policy.meter_event_latency_s = 0.5
    first = threading.Thread(target=w.use, args=("1", "e1"))
    first.start()
    while w.double.executing_count == 0:
        first.join(0.005)
    other = client_of(w.double)
    with pytest.raises(stripe.APIError) as refused:
        World(w.double, other, w.customer, w.meter, w.product, w.price).use("1", "e2")
    neighbour = other.v1.customers.create({"name": "neighbour"}).id
    World(w.double, other, neighbour, w.meter, w.product, w.price).use("1", "e3")
    first.join()
    assert refused.value.http_status == 409
    assert refused.value.error is not None
    assert refused.value.error.code == "too_many_concurrent_requests"
    assert w.double.meter_total() == 2


# -- summaries ---


def _summaries(w: World, start: int, end: int, **more: Any) -> Any:
    asked: Any = {"customer": w.customer, "start_time": start, "end_time": end, **more}
    return w.client.v1.billing.meters.event_summaries.list(w.meter, asked)


def test_summaries_sum_per_hour_newest_first_without_a_customer_field(w: World) -> None:
    """The documentation's example: 10 in one hour, 15 in the next, listed 15 then 10."""
    start = NOW - 2 * HOUR_S
    for number, (value, at) in enumerate([("4", start), ("6", start + HOUR_S - 1), ("15", start + HOUR_S)]):
        w.use(value, f"e{number}", at=at)
    rows = _summaries(w, start, NOW, value_grouping_window="hour").data
    assert [(row.start_time, row.end_time, row.aggregated_value) for row in rows] == [
        (start + HOUR_S, NOW, 15),
        (start, start + HOUR_S, 10),
    ]
    assert rows[0].id.startswith("mtrusg_test_")
    assert "customer" not in rows[0]
    whole = _summaries(w, start, NOW).data
    assert [row.aggregated_value for row in whole] == [25]


def test_a_summary_includes_its_start_and_excludes_its_end(w: World) -> None:
    w.use("1", "e1", at=NOW - 60)
    w.use("2", "e2", at=NOW)
    assert [row.aggregated_value for row in _summaries(w, NOW - 60, NOW).data] == [1]
    assert _summaries(w, NOW - 120, NOW - 60).data == []


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [
        (NOW + 1, NOW + 60, None),
        (NOW, NOW + 90, None),
        (NOW + 60, NOW + HOUR_S, "hour"),
        (NOW, NOW + DAY_S, "day"),
        (NOW, NOW, None),
    ],
)
def test_summary_ranges_that_are_not_aligned_are_refused(w: World, start: int, end: int, window: str | None) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        _summaries(w, start, end, **({"value_grouping_window": window} if window else {}))


def test_a_month_of_hours_is_paged_ten_by_ten(w: World) -> None:
    start = NOW - 30 * DAY_S
    for number in range(25):
        w.use(str(number + 1), f"e{number}", at=start + number * HOUR_S)
    first = _summaries(w, start, NOW, value_grouping_window="hour")
    assert len(first.data) == 10
    assert first.has_more
    assert [row.aggregated_value for row in first.auto_paging_iter()] == list(range(25, 0, -1))


def test_summaries_lag_by_the_configured_delay_and_totals_do_not(w: World) -> None:
    w.double.policy.aggregation_delay_s = 120
    w.use("5", "e1", at=NOW - 60)
    assert _summaries(w, NOW - 60, NOW).data == []
    assert w.double.meter_total() == 5
    w.double.clock.advance(120)
    assert [row.aggregated_value for row in _summaries(w, NOW - 60, NOW).data] == [5]


def test_sums_beyond_the_integers_of_a_double_come_as_the_nearest_double(w: World) -> None:
    for number in range(10):
        w.use("999999999999999", f"e{number}")
    assert w.double.meter_total() == 9_999_999_999_999_990
    rows = _summaries(w, NOW, NOW + 60).data
    assert [row.aggregated_value for row in rows] == [float(9_999_999_999_999_990)]


@pytest.mark.parametrize(
    ("formula", "window", "expected"),
    [
        ("sum", None, 12),
        ("count", None, 3),
        ("last", None, 2),
        ("sum", "hour", 6),
        ("sum", "day", 2),
    ],
)
def test_formulas_and_time_windows_aggregate_as_documented(
    w: World, formula: str, window: str | None, expected: int
) -> None:
    """6 at 11:00, 4 at 11:30 (received later, so it replaces 6 in its hour), 2 at 12:00."""
    asked: Any = {"display_name": "M", "event_name": "m", "default_aggregation": {"formula": formula}}
    if window:
        asked["event_time_window"] = window
    meter = w.client.v1.billing.meters.create(asked)
    for value, at in (("6", NOW - HOUR_S), ("4", NOW - HOUR_S // 2), ("2", NOW)):
        payload = {"stripe_customer_id": w.customer, "value": value}
        w.client.v1.billing.meter_events.create({"event_name": "m", "payload": payload, "timestamp": at})
    w.meter = meter.id
    assert [row.aggregated_value for row in _summaries(w, NOW - DAY_S, NOW + 60).data] == [expected]


# -- adjustments ---


def test_an_event_is_taken_back_within_24_hours(w: World) -> None:
    w.use("25", "e1")
    w.use("5", "e2")
    w.double.clock.advance(DAY_S - 1)
    made = w.client.v1.billing.meter_event_adjustments.create(
        {"event_name": "spend", "type": "cancel", "cancel": {"identifier": "e1"}}
    )
    assert (made.status, made.cancel and made.cancel.identifier) == ("pending", "e1")
    assert w.double.meter_total() == 5
    assert w.double.meter_events[0].status == "canceled"
    w.double.clock.advance(1)
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.billing.meter_event_adjustments.create(
            {"event_name": "spend", "type": "cancel", "cancel": {"identifier": "e2"}}
        )
    assert w.double.meter_total() == 5


# -- v2, the stream, and what is rejected afterwards ---


def _v2(w: World, identifier: str, **payload: str) -> Any:
    asked: Any = {
        "event_name": "spend",
        "identifier": identifier,
        "payload": {"stripe_customer_id": w.customer, "value": "25", **payload},
    }
    return w.client.v2.billing.meter_events.create(asked)


def test_v2_events_share_the_meter_and_the_identifiers_with_v1(w: World) -> None:
    made = _v2(w, "e1")
    assert made.object == "v2.billing.meter_event"
    assert made.identifier == "e1"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        _v2(w, "e1")
    assert refused.value.code == "duplicate_meter_event"
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        w.use("25", "e1")
    assert w.double.meter_total() == 25


def _stream(w: World, token: str) -> stripe.StripeClient:
    return client_of(w.double, key=token)


def _stream_event(w: World, identifier: str, **change: Any) -> Any:
    payload = {"stripe_customer_id": w.customer, "value": "10"} | change.pop("payload", {})
    return {"event_name": "spend", "identifier": identifier, "payload": payload, **change}


def test_the_stream_takes_a_session_token_and_no_secret_key(w: World) -> None:
    session = w.client.v2.billing.meter_event_session.create()
    _stream(w, session.authentication_token).v2.billing.meter_event_stream.create(
        {"events": [_stream_event(w, f"s{number}") for number in range(100)]}
    )
    assert w.double.meter_total(w.customer) == 1_000
    with pytest.raises(stripe.AuthenticationError):
        w.client.v2.billing.meter_event_stream.create({"events": [_stream_event(w, "x")]})


def test_a_session_lasts_15_minutes(w: World) -> None:
    client = _stream(w, w.client.v2.billing.meter_event_session.create().authentication_token)
    w.double.clock.advance(15 * 60 - 1)
    client.v2.billing.meter_event_stream.create({"events": [_stream_event(w, "s1")]})
    w.double.clock.advance(1)
    with pytest.raises(stripe.TemporarySessionExpiredError) as refused:
        client.v2.billing.meter_event_stream.create({"events": [_stream_event(w, "s2")]})
    assert refused.value.code == "billing_meter_event_session_expired"
    assert w.double.meter_total() == 10


def test_a_stream_request_holds_at_most_100_events(w: World) -> None:
    client = _stream(w, w.client.v2.billing.meter_event_session.create().authentication_token)
    with pytest.raises(stripe.InvalidRequestError):
        client.v2.billing.meter_event_stream.create(
            {"events": [_stream_event(w, f"s{number}") for number in range(101)]}
        )
    assert w.double.meter_total() == 0


def test_the_stream_answers_200_to_bad_events_and_reports_them_ten_seconds_later(w: World) -> None:
    client = _stream(w, w.client.v2.billing.meter_event_session.create().authentication_token)
    archived = w.client.v1.billing.meters.create(
        {"display_name": "Old", "event_name": "old", "default_aggregation": {"formula": "sum"}}
    )
    w.client.v1.billing.meters.deactivate(archived.id)
    events = [
        _stream_event(w, "good"),
        _stream_event(w, "nobody", payload={"stripe_customer_id": "cus_no"}),
        _stream_event(w, "long", payload={"value": "1" * 16}),
        _stream_event(w, "text", payload={"value": "many"}),
        _stream_event(w, "future", timestamp="2027-01-01T00:00:00Z"),
        _stream_event(w, "past", timestamp="2025-01-01T00:00:00.000Z"),
        _stream_event(w, "none", event_name="unknown"),
        _stream_event(w, "archived", event_name="old"),
    ]
    client.v2.billing.meter_event_stream.create({"events": events})
    assert w.double.meter_total() == 10
    assert w.double.thin_events == []
    w.double.clock.advance(10)
    codes = {
        (event["type"].rpartition(".")[2], kind["code"])
        for event in w.double.thin_events
        for kind in event["data"]["reason"]["error_types"]
    }
    report = "error_report_triggered"
    assert codes == {
        (report, "meter_event_customer_not_found"),
        (report, "meter_event_value_too_many_digits"),
        (report, "meter_event_invalid_value"),
        (report, "timestamp_in_future"),
        (report, "timestamp_too_far_in_past"),
        (report, "archived_meter"),
        ("no_meter_found", "no_meter"),
    }


def test_a_late_rejection_arrives_thin_and_is_fetched_with_its_data_in_both_documented_shapes(
    w: World,
) -> None:
    """200 is not billed: the event stops counting, and only the fetched event names it."""
    with receiving() as receiver:
        target = w.double.add_webhook(receiver.url, is_thin=True)
        seen = []
        for name in ("e1", "e2"):
            w.double.reject_next(1, "meter_event_customer_not_found")
            w.use("25", name)
            w.double.clock.advance(10)
            body, signature = receiver.received[-1]
            assert b'"data"' not in body
            notice: Any = w.client.parse_event_notification(body, signature, target.secrets[0][0])
            assert notice.type == "v1.billing.meter.error_report_triggered"
            event: Any = notice.fetch_event()
            assert notice.related_object is not None
            assert notice.related_object.id == w.meter
            kind = event.data.reason.error_types[0]
            assert (event.data.reason.error_count, kind.code) == (1, "meter_event_customer_not_found")
            seen.append(w.double.thin_events[-1]["data"]["reason"]["error_types"][0]["sample_errors"][0]["request"])
            assert event.data.validation_end > event.data.validation_start
    assert seen == [{"identifier": "e1"}, {"id": "", "idempotency_key": "e2"}]
    assert w.double.meter_total() == 0
    assert [each.status for each in w.double.meter_events] == ["rejected"] * 2


def test_a_report_names_samples_and_never_all(w: World) -> None:
    w.double.reject_next(7)
    for number in range(7):
        w.use("1", f"e{number}")
    w.double.clock.advance(10)
    (event,) = w.double.thin_events
    kind = event["data"]["reason"]["error_types"][0]
    assert kind["error_count"] == 7
    assert len(kind["sample_errors"]) == 5
