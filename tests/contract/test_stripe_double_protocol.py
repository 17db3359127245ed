"""The Stripe double's manners: authentication, errors, idempotency, lists, faults, and Stripe's own document.

Driven by the official SDK over a socket; where the SDK hides the wire, by plain HTTP.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import stripe

from tests.contract.stripe_double_support import DAY_S, NOW, World, client_of, world
from tests.emulators.stripe_double import FaultKind, StripeDouble
from tests.emulators.stripe_double.check import SchemaCompiler
from tests.emulators.stripe_double.spec import Specification, load_document


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


def raw(
    double: StripeDouble, method: str, path: str, body: str = "", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """One request without the SDK: (status, JSON, headers in lower case)."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(double.url).port or 0, timeout=5)
    sent = {"Authorization": f"Bearer {double.api_key}", "Content-Type": "application/x-www-form-urlencoded"}
    connection.request(method, path, body or None, sent | {k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    answer = response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    connection.close()
    return answer


def test_a_wrong_key_is_401_and_basic_authentication_is_accepted(w: World) -> None:
    with pytest.raises(stripe.AuthenticationError):
        client_of(w.double, key="sk_test_other").v1.customers.list()
    basic = "Basic " + b64encode(f"{w.double.api_key}:".encode()).decode()
    assert raw(w.double, "GET", "/v1/customers", Authorization=basic)[0] == 200
    assert raw(w.double, "GET", "/v1/customers", Authorization="")[0] == 401


def test_every_answer_carries_a_request_id_of_its_own(w: World) -> None:
    first = w.client.v1.customers.retrieve(w.customer).last_response
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v1.customers.retrieve("cus_unknown")
    assert first is not None
    assert first.request_id
    assert refused.value.request_id
    assert first.request_id != refused.value.request_id


def test_an_unknown_object_is_404_with_stripes_code_and_sentence(w: World) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v1.customers.retrieve("cus_unknown")
    error = refused.value
    assert (error.http_status, error.code, error.user_message) == (
        404,
        "resource_missing",
        "No such customer: 'cus_unknown'",
    )


def test_indexed_and_nested_keys_arrive_as_the_sdk_meant_them(w: World) -> None:
    made = w.client.v1.customers.create({"name": "B & Ünï=co", "metadata": {"1": "one", "a.b": "x y"}})
    assert made.name == "B & Ünï=co"
    assert made.metadata is not None
    assert made.metadata.to_dict() == {"1": "one", "a.b": "x y"}
    status, body, _ = raw(w.double, "GET", f"/v1/subscriptions?customer={w.customer}&expand[]=data.customer")
    assert (status, body["data"]) == (200, [])


def test_the_document_decides_what_is_a_list_a_number_or_a_name() -> None:
    specification = Specification()
    body = (
        "default_tax_rates[1]=txr_b&default_tax_rates[0]=txr_a&items[0][quantity]=2&items[0][metadata][0]=n"
        "&cancel_at=17&trial_end=now&cancel_at_period_end=true&metadata[7]=8&description=9&expand[]=a&expand[]=b"
    )
    assert specification.decode_form(specification.operation("POST", "/v1/subscriptions"), body) == {
        "default_tax_rates": ["txr_a", "txr_b"],
        "items": [{"quantity": 2, "metadata": {"0": "n"}}],
        "cancel_at": 17,
        "trial_end": "now",
        "cancel_at_period_end": True,
        "metadata": {"7": "8"},
        "description": "9",
        "expand": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/billing/meter_events", "payload[value]=1", "parameter_missing", "event_name"),
        (
            "/v1/billing/meter_events",
            "event_name=e&payload[value]=1&colour=red",
            "parameter_unknown",
            "colour",
        ),
        ("/v1/billing/meter_events", f"event_name=e&payload[a]=1&identifier={'i' * 101}", None, "identifier"),
        ("/v1/billing/meter_events", "event_name=e&payload[a][b]=1", None, "payload[a]"),
        ("/v1/billing/meter_events", "event_name=e&payload[a]=1&timestamp=soon", None, "timestamp"),
        (
            "/v1/prices",
            "currency=usd&product=p&recurring[interval]=month&recurring[metre]=m&unit_amount=1",
            "parameter_unknown",
            "recurring[metre]",
        ),
        (
            "/v1/billing/meters",
            "display_name=d&event_name=e&default_aggregation[formula]=max",
            None,
            "default_aggregation[formula]",
        ),
    ],
)
def test_what_stripes_document_refuses_is_400_and_recorded(path: str, body: str, code: str | None, param: str) -> None:
    with StripeDouble(now=NOW) as double:
        status, answer, _ = raw(double, "POST", path, body)
        assert status == 400
        assert (answer["error"].get("code"), answer["error"]["param"]) == (code, param)
        assert len(double.violations) == 1
        assert param in double.violations[0]


def test_a_v2_payload_value_that_is_not_a_string_is_a_violation() -> None:
    with StripeDouble(now=NOW) as double:
        body = json.dumps({"event_name": "e", "payload": {"value": 25, "stripe_customer_id": "cus_1"}})
        assert raw(double, "POST", "/v2/billing/meter_events", body, Content_Type="application/json")[0] == 400
        assert "payload[value]: 25 is not of type string" in double.violations[0]


def test_an_endpoint_or_parameter_that_is_not_modelled_is_refused_and_never_ignored() -> None:
    with StripeDouble(now=NOW) as double:
        assert raw(double, "GET", "/v1/payouts")[0] == 404
        assert raw(double, "POST", "/v1/customers", "tax_exempt=exempt")[0] == 400
        assert "not modelled" in double.violations[0]
        assert "not modelled" in double.violations[1]


def test_all_routes_are_documented_by_stripe() -> None:
    from tests.emulators.stripe_double.double import ROUTES

    specification = Specification()
    assert [route.template for route in ROUTES if not specification.has(route.method, route.template)] == []
    for route in ROUTES:
        reads = specification.operation(route.method, route.template).reads.get("properties", {})
        assert route.models - {"expand", "limit", "starting_after", "ending_before"} <= set(reads), route


# -- the checker, against a general JSON Schema library ---


def _draft4(schema: Any) -> Any:
    """OpenAPI 3.0 as JSON Schema draft 4: `nullable` becomes a choice, objects with names are closed."""
    if isinstance(schema, list):
        return [_draft4(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _draft4(value) for name, value in schema.items() if name not in ("nullable", "format", "oneOf")}
    if schema.get("properties") and "additionalProperties" not in schema and schema.get("type") == "object":
        made["additionalProperties"] = False
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") is True else made


def _with_jsonschema(name: str) -> Any:
    document = load_document()["components"]["schemas"]
    needed: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in needed:
            needed[each] = _draft4(document[each])
            text = json.dumps(needed[each])
            waiting += {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": needed}}
    return jsonschema.Draft4Validator(root)


MUTATIONS: tuple[tuple[str, Any], ...] = (
    ("id", None),
    ("livemode", "yes"),
    ("status", "sleeping"),
    ("created", "today"),
    ("metadata", {"a": 1}),
    ("colour", "red"),
    ("currency", 7),
    ("items", None),
    ("lines", {}),
    ("price", 4),
    ("name", ["a"]),
)


@pytest.mark.parametrize("kind", ["customer", "billing.meter", "price", "product", "subscription", "invoice"])
def test_the_compiled_check_agrees_with_a_general_schema_library(w: World, kind: str) -> None:
    """Our own objects, whole and broken in eleven ways, get the same verdict from both."""
    w.subscribe()
    sample = w.double.objects(kind)[0]
    general = _with_jsonschema(kind)
    compiled = SchemaCompiler(load_document()["components"]["schemas"], is_closed=True).named(kind)
    broken = [{**sample, name: value} for name, value in MUTATIONS]
    shorter = [{k: v for k, v in sample.items() if k != name} for name in ("id", "object", "livemode")]
    verdicts = []
    for candidate in [sample, *broken, *shorter]:
        problems: list[str] = []
        compiled(candidate, kind, problems)
        assert general.is_valid(candidate) == (not problems), (problems, candidate)
        verdicts.append(not problems)
    assert verdicts[0] is True
    assert verdicts.count(False) >= 5


# -- lists ---


def test_lists_come_newest_first_in_pages_of_ten(w: World) -> None:
    made = [w.client.v1.customers.create({"name": f"c{number}"}).id for number in range(24)]
    newest_first = [*made[::-1], w.customer]
    first = w.client.v1.customers.list()
    assert [each.id for each in first.data] == newest_first[:10]
    assert first.has_more
    assert first.url == "/v1/customers"
    assert [each.id for each in first.auto_paging_iter()] == newest_first
    before = w.client.v1.customers.list({"ending_before": newest_first[12], "limit": 3})
    assert [each.id for each in before.data] == newest_first[9:12]


@pytest.mark.parametrize("limit", [0, 101])
def test_a_page_has_1_to_100_rows(w: World, limit: int) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v1.customers.list({"limit": limit})
    assert refused.value.param == "limit"


def test_lists_filter_by_creation(w: World) -> None:
    w.double.clock.advance(hours=1)
    later = w.client.v1.customers.create({"name": "later"})
    found = w.client.v1.customers.list({"created": {"gte": NOW + 3_600}})
    assert [each.id for each in found.data] == [later.id]


# -- idempotency ---


def test_a_repeated_key_replays_the_first_answer_and_does_nothing(w: World) -> None:
    first = w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"})
    again = w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"})
    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert [each["name"] for each in w.double.objects("customer")].count("Once") == 1


def test_a_key_with_other_parameters_is_an_idempotency_error(w: World) -> None:
    w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"})
    with pytest.raises(stripe.IdempotencyError) as refused:
        w.client.v1.customers.create({"name": "Twice"}, {"idempotency_key": "k1"})
    assert refused.value.http_status == 400
    with pytest.raises(stripe.IdempotencyError):
        w.client.v1.products.create({"name": "Once"}, {"idempotency_key": "k1"})


def test_a_key_is_forgotten_after_exactly_24_hours(w: World) -> None:
    first = w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"})
    w.double.clock.advance(DAY_S - 1)
    assert w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"}).id == first.id
    w.double.clock.advance(1)
    assert w.client.v1.customers.create({"name": "Once"}, {"idempotency_key": "k1"}).id != first.id


def test_a_key_in_flight_is_409(w: World) -> None:
    w.double.fault(FaultKind.SLOW_BEFORE_COMMIT, "/v1/customers", seconds=0.4)
    results: list[str] = []
    slow = threading.Thread(
        target=lambda: results.append(w.client.v1.customers.create({"name": "S"}, {"idempotency_key": "k"}).id)
    )
    slow.start()
    while w.double.executing_count == 0:
        slow.join(0.005)
    with pytest.raises(stripe.APIError) as refused:
        client_of(w.double).v1.customers.create({"name": "S"}, {"idempotency_key": "k"})
    slow.join()
    assert refused.value.http_status == 409
    assert refused.value.error is not None
    assert refused.value.error.code == "idempotency_key_in_use"
    assert len(results) == 1


def test_malformed_parameters_are_not_kept_and_refusals_are() -> None:
    with StripeDouble(now=NOW) as double:
        assert raw(double, "POST", "/v1/products", "colour=red", Idempotency_Key="k")[0] == 400
        assert raw(double, "POST", "/v1/products", "name=n", Idempotency_Key="k")[0] == 200
        event = "event_name=e&payload[stripe_customer_id]=c&payload[value]=1"
        first = raw(double, "POST", "/v1/billing/meter_events", event, Idempotency_Key="m")
        again = raw(double, "POST", "/v1/billing/meter_events", event, Idempotency_Key="m")
        assert (first[0], again[0]) == (400, 400)
        assert "idempotent-replayed" not in first[2]
        assert again[2]["idempotent-replayed"] == "true"
        assert again[1] == first[1]


def test_v2_repeats_successes_only(w: World) -> None:
    asked: Any = {
        "event_name": "later",
        "identifier": "i1",
        "payload": {"stripe_customer_id": w.customer, "value": "1"},
    }
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v2.billing.meter_events.create(asked, {"idempotency_key": "i1"})
    assert refused.value.code == "no_meter"
    w.client.v1.billing.meters.create(
        {"display_name": "L", "event_name": "later", "default_aggregation": {"formula": "sum"}}
    )
    assert w.client.v2.billing.meter_events.create(asked, {"idempotency_key": "i1"}).identifier == "i1"
    w.double.clock.advance(days=29)
    assert w.client.v2.billing.meter_events.create(asked, {"idempotency_key": "i1"}).identifier == "i1"
    assert w.double.meter_total(w.customer, "later") == 1


# -- faults ---


def test_an_answer_lost_after_the_commit_is_replayed_to_the_sdks_own_retry(w: World) -> None:
    """The critical case: the event counts once, though the client saw the connection break."""
    w.client = client_of(w.double, retries=2)
    fault = w.double.fault(FaultKind.DROP_AFTER_COMMIT, "/v1/billing/meter_events")
    response = w.use("25", "e1").last_response
    assert fault.hits == 1
    assert response.headers["Idempotent-Replayed"] == "true"
    assert w.double.meter_total(w.customer) == 25
    assert len(w.double.meter_events) == 1


def test_an_answer_lost_after_the_commit_leaves_the_event_counted_without_a_retry(w: World) -> None:
    w.double.fault(FaultKind.DROP_AFTER_COMMIT, "/v1/billing/meter_events")
    with pytest.raises(stripe.APIConnectionError):
        w.use("25", "e1")
    assert w.double.meter_total(w.customer) == 25
    with pytest.raises(stripe.InvalidRequestError, match="An event already exists with identifier e1"):
        w.use("25", "e1", key="another key")
    assert w.double.meter_total(w.customer) == 25


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        (FaultKind.DROP_BEFORE_COMMIT, stripe.APIConnectionError, None),
        (FaultKind.CONFLICT, stripe.APIError, 409),
        (FaultKind.RATE_LIMITED, stripe.RateLimitError, 429),
        (FaultKind.LOCK_TIMEOUT, stripe.RateLimitError, 429),
        (FaultKind.SERVER_ERROR, stripe.APIError, 500),
    ],
)
def test_a_fault_before_the_commit_leaves_no_trace(
    w: World, kind: FaultKind, error: type[stripe.StripeError], status: int | None
) -> None:
    w.double.fault(kind, "/v1/billing/meter_*")
    with pytest.raises(error) as refused:
        w.use("25", "e1")
    assert refused.value.http_status == status
    assert w.double.meter_total() == 0
    w.use("25", "e1")
    assert w.double.meter_total() == 25


def test_the_sdk_retries_a_lock_timeout_and_not_a_rate_limit(w: World) -> None:
    client = client_of(w.double, retries=1)
    w.double.fault(FaultKind.LOCK_TIMEOUT, "/v1/customers")
    assert client.v1.customers.list().data
    w.double.fault(FaultKind.RATE_LIMITED, "/v1/customers", reason="endpoint-rate")
    with pytest.raises(stripe.RateLimitError) as refused:
        client.v1.customers.list()
    assert refused.value.headers is not None
    assert refused.value.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"


def test_a_server_error_after_the_commit_is_kept_under_its_key(w: World) -> None:
    w.double.fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, "/v1/billing/meter_events", status=503)
    for _ in range(2):
        with pytest.raises(stripe.APIError) as refused:
            w.use("25", "e1")
        assert refused.value.http_status == 503
    assert w.double.meter_total() == 25


def test_v2_runs_again_after_a_server_error_and_finds_its_own_event(w: World) -> None:
    w.double.fault(FaultKind.SERVER_ERROR_AFTER_COMMIT, "/v2/billing/meter_events", status=503)
    payload = {"stripe_customer_id": w.customer, "value": "25"}
    asked: Any = {"event_name": "spend", "identifier": "e1", "payload": payload}
    with pytest.raises(stripe.APIError):
        w.client.v2.billing.meter_events.create(asked, {"idempotency_key": "e1"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        w.client.v2.billing.meter_events.create(asked, {"idempotency_key": "e1"})
    assert refused.value.code == "duplicate_meter_event"
    assert w.double.meter_total() == 25


@pytest.mark.parametrize("kind", [FaultKind.GARBAGE, FaultKind.TRUNCATED])
def test_a_broken_body_hides_a_request_that_happened(w: World, kind: FaultKind) -> None:
    """Measured on the SDK: neither is retried, whatever `max_network_retries` says."""
    w.client = client_of(w.double, retries=2)
    fault = w.double.fault(kind, "/v1/billing/meter_events", times=None)
    with pytest.raises(stripe.StripeError):
        w.use("25", "e1")
    assert fault.hits == 1
    assert w.double.meter_total() == 25


def test_a_slow_answer_outlasts_the_client_and_the_event_counts(w: World) -> None:
    impatient = stripe.StripeClient(
        w.double.api_key,
        base_addresses={"api": w.double.url},
        http_client=stripe.RequestsClient(timeout=0.15),
    )
    w.double.fault(FaultKind.SLOW, "/v1/billing/meter_events", seconds=0.4)
    w.client, patient = impatient, w.client
    with pytest.raises(stripe.APIConnectionError):
        w.use("25", "e1")
    w.client = client_of(w.double, retries=3)
    w.use("25", "e1")
    assert w.double.meter_total() == 25
    assert len(w.double.meter_events) == 1
    assert patient.v1.customers.list().data


def test_half_a_request_is_no_request(w: World) -> None:
    """A client that dies while it sends must not leave a smaller amount behind."""
    body = f"event_name=spend&payload[stripe_customer_id]={w.customer}&payload[value]=12"
    head = f"Authorization: Bearer {w.double.api_key}\r\nContent-Length: {len(body) + 3}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(w.double.url).port or 0), timeout=5) as dying:
        dying.sendall(f"POST /v1/billing/meter_events HTTP/1.1\r\n{head}{body}".encode())
        dying.shutdown(socket.SHUT_WR)
        assert dying.recv(100) == b""
    assert w.double.meter_total() == 0


def test_faults_count_skip_and_match_bodies(w: World) -> None:
    fault = w.double.fault(FaultKind.SERVER_ERROR, "/v1/customers", times=2, skip=1, body_contains="name=X")
    assert w.client.v1.customers.create({"name": "Y"}).id
    assert w.client.v1.customers.create({"name": "X"}).id
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            w.client.v1.customers.create({"name": "X"})
    assert w.client.v1.customers.create({"name": "X"}).id
    assert fault.hits == 2


def test_an_outage_refuses_connections_and_ends_on_the_same_port(w: World) -> None:
    w.double.go_offline()
    with pytest.raises(stripe.APIConnectionError):
        client_of(w.double).v1.customers.list()
    w.double.go_online()
    assert client_of(w.double).v1.customers.retrieve(w.customer).id == w.customer


def test_a_rate_limit_that_is_set_refuses_what_is_above_it(w: World) -> None:
    w.double.policy.requests_per_s_max = 3
    statuses = [raw(w.double, "GET", "/v1/customers")[0] for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    w.use("1", "meter events have a limit of their own")
    assert w.double.meter_total() == 1
