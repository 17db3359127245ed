"""What a customer learns of itself with its key, over a socket: usage, credit, budgets, receipts; and nothing else."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import MODEL, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import Answer, ask, body, request
from tests.acceptance.serving import fake_upstream

SECRETS = ("cost", "margin", "upstream", "upstream_model", "price_ref", "meter_batch", "customer_id")


@pytest.fixture(scope="module")
def upstream_url() -> Iterator[str]:
    """A scripted upstream."""
    with fake_upstream() as upstream:
        yield upstream.url


@pytest.fixture
def gateway(upstream_url: str, tmp_path: Path, database_url: str) -> Iterator[Gateway]:
    """A gateway on each engine."""
    with Gateway(tmp_path / "gateway", Upstream(upstream_url), database_url=database_url) as running:
        yield running


def get(gateway: Gateway, path: str, key: Key | None) -> Answer:
    """GET as that key."""
    return ask(gateway, request(key, b"", path=path, method="GET", headers={"Content-Length": "", "Content-Type": ""}))


def told(gateway: Gateway, path: str, key: Key) -> Any:
    """The answer's JSON, which names nothing of the operator's."""
    answer = get(gateway, path, key)
    assert answer.status == 200, answer.body
    assert answer.header("x-request-id")
    text = answer.body.decode()
    assert not [word for word in SECRETS if f'"{word}":' in text]
    return answer.json


def test_usage_is_ones_own_by_model_day_and_key(gateway: Gateway) -> None:
    other = gateway.new_customer("globex")
    second = gateway.new_key("--name", "second")
    for key in (gateway.key, gateway.key, second, other):
        assert ask(gateway, request(key)).status == 200
    whole = told(gateway, "/v1/usage", gateway.key)
    assert whole["object"] == "list"
    assert [(row["model"], row["requests"], row["input_tokens"]) for row in whole["data"]] == [(MODEL, 3, 21)]
    assert Decimal(whole["amount"]).scaleb(12) == 3 * price(7, 3)
    by_key = told(gateway, "/v1/usage?by=key", second)
    assert {row["key"]: row["requests"] for row in by_key["data"]} == {gateway.key.id: 2, second.id: 1}
    days = told(gateway, "/v1/usage?by=day,model&since=-1d", other)["data"]
    assert [(row["requests"], row["amount"]) for row in days] == [(1, f"{Decimal(price(7, 3)).scaleb(-12):.12f}")]
    assert told(gateway, "/v1/usage?until=2026-01-01", gateway.key)["data"] == []
    assert told(gateway, "/v1/usage?since=2026-01-01T00:00:00%2B02:00", gateway.key)["since"] == "2025-12-31T22:00:00Z"


def test_what_can_not_be_asked_is_said(gateway: Gateway) -> None:
    backwards = "since=2026-02-02&until=2026-02-01"
    for query in ("by=customer", "by=", "since=tomorrow", backwards, "limit=3", f"by={'x' * 999}"):
        answer = get(gateway, f"/v1/usage?{query}", gateway.key)
        assert (answer.status, answer.code) == (400, "invalid_request"), query


def test_credit_its_holds_and_what_is_left_of_budgets(gateway: Gateway) -> None:
    nothing = told(gateway, "/v1/credits", gateway.key)
    assert (nothing["balance"], nothing["budget_left"], nothing["budgets"]) == ("0.000000000000", None, [])
    gateway.weir("customer", "add", "globex", "--prepaid")
    key, other = (
        gateway.new_key("--budget", "0.5", "--per", "day", customer="globex"),
        gateway.new_key(customer="globex"),
    )
    gateway.weir("credit", "grant", "globex", "2", "--expires", "+5d")
    gateway.weir("customer", "set", "globex", "--budget", "1", "--per", "month")
    eventually(lambda: ask(gateway, request(key)).status == 200 or None, "credit")
    amount = Decimal(price(7, 3)).scaleb(-12)
    whole = told(gateway, "/v1/credits", key)
    assert whole["prepaid"] is True
    assert Decimal(whole["balance"]) == 2 - amount
    assert Decimal(whole["available"]) == Decimal(whole["balance"]) - Decimal(whole["held"])
    assert [Decimal(grant["left"]) <= 2 for grant in whole["credits"]] == [True]
    assert [(row["per"], Decimal(row["used"]), row["used_pct"]) for row in whole["budgets"]] == [
        ("month", amount, "0.0"),
        ("day", amount, "0.0"),
    ]
    assert Decimal(whole["budget_left"]) <= Decimal("0.5") - amount
    assert [row["key_id"] for row in told(gateway, "/v1/credits", other)["budgets"]] == [None]


def test_a_receipt_is_what_the_request_used_and_cost(gateway: Gateway) -> None:
    asked = ask(gateway, request(gateway.key))
    found = told(gateway, f"/v1/requests/{asked.id}", gateway.key)
    assert (found["id"], found["outcome"], found["input_tokens"], found["output_tokens"]) == (
        asked.id,
        "completed",
        7,
        3,
    )
    assert found["unit_prices"]["input"] == "0.0390"
    assert f"{found['amount']} {found['currency']}" == asked.header("x-weir-amount")
    assert (found["adjustments"], found["amount_due"]) == ([], found["amount"])
    gateway.weir("adjust", asked.id, "--refund", "--reason", "test", "--yes")
    after = told(gateway, f"/v1/requests/{asked.id}", gateway.key)
    assert (after["amount"], len(after["adjustments"])) == (found["amount"], 1)
    assert Decimal(after["amount_due"]) == 0


def test_a_receipt_of_somebody_else_is_as_unknown_as_none(gateway: Gateway) -> None:
    asked = ask(gateway, request(gateway.key))
    other = gateway.new_customer("globex")
    refused = ask(gateway, request(gateway.key, body(model="nothing")))
    texts = set()
    for request_id in (asked.id, refused.id, "nothing", "%00", "x" * 500, "%C3%A9"):
        answer = get(gateway, f"/v1/requests/{request_id}", other)
        assert (answer.status, answer.code) == (404, "not_found")
        texts.add(answer.json["error"]["message"].split("'")[0])
    assert len(texts) == 1
    assert get(gateway, f"/v1/requests/{asked.id}", gateway.key).status == 200


def test_who_is_suspended_still_sees_why_and_what_it_is_to_pay(gateway: Gateway) -> None:
    """Its requests are refused, its questions are answered: but not with a key that is revoked."""
    asked = ask(gateway, request(gateway.key))
    assert told(gateway, "/v1/credits", gateway.key)["suspended"] is None
    gateway.weir("customer", "suspend", "acme", "--reason", "invoice 7 is unpaid")
    gateway.await_changes()
    assert ask(gateway, request(gateway.key)).code == "customer_suspended"
    assert get(gateway, "/v1/models", gateway.key).code == "customer_suspended"
    assert told(gateway, "/v1/usage", gateway.key)["data"][0]["requests"] == 1
    assert told(gateway, "/v1/credits", gateway.key)["suspended"] == "invoice 7 is unpaid"
    assert told(gateway, f"/v1/requests/{asked.id}", gateway.key)["id"] == asked.id
    gateway.weir("key", "revoke", gateway.key.id, "--yes")
    gateway.await_changes()
    assert get(gateway, "/v1/usage", gateway.key).code == "invalid_api_key"


def test_they_are_for_customers_only(gateway: Gateway) -> None:
    """No key, a wrong one, a revoked one; and nothing but GET."""
    revoked = gateway.new_key()
    gateway.weir("key", "revoke", revoked.id, "--yes")
    for path in ("/v1/usage", "/v1/credits", "/v1/requests/x"):
        for key in (None, Key(id="key_x", secret="wk_wrong", customer="acme")):
            answer = get(gateway, path, key)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
        eventually(lambda path=path: get(gateway, path, revoked).status == 401 or None, "revoked")  # type: ignore[misc]
        assert ask(gateway, request(gateway.key, path=path)).status == 405
    assert json.loads(gateway.weir("customer", "list", "--json"))
