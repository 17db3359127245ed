"""Budgets at a running gateway: what is admitted under them, clamped, refused, and what a change of them changes."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from tests.acceptance.harness import INPUT_PICO, OUTPUT_PICO, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import CHAT, Answer, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, next_record, plain, script_chat
from tests.emulators.upstream import Await, FakeUpstream, Gate, chat_chunk, event, sse_head


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    """A scripted upstream."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture
def gateway(fake: FakeUpstream, tmp_path: Path, database_url: str) -> Iterator[Gateway]:
    """A gateway on each engine."""
    with Gateway(tmp_path / "gateway", Upstream(fake.url), database_url=database_url) as running:
        yield running


def usd(pico: int) -> str:
    """An amount as the command line takes it."""
    return f"{Decimal(pico).scaleb(-12):.12f}"


def put(gateway: Gateway, pico: int, *options: str, customer: str = "acme") -> None:
    """Set a customer's budget."""
    gateway.weir("customer", "set", customer, "--budget", usd(pico), "--per", *(options or ("month",)))


def worst(content: object, tokens: int) -> int:
    """What a request is held at."""
    return (len(json.dumps(content).encode()) + 1_024) * INPUT_PICO + tokens * OUTPUT_PICO


def spent(gateway: Gateway) -> int:
    """All usage."""
    return sum(row["amount_pico"] for row in gateway.events())


def is_over(answer: Answer) -> bool:
    """Whether it is the 402 of a budget."""
    return answer.status == 402 and answer.code == "budget_exceeded"


def until_over(gateway: Gateway, key: Key, content: dict[str, object]) -> int:
    """Ask until a budget refuses, within a thousand requests; how many were answered."""
    for number in range(1_000):
        answer = ask(gateway, request(key, content))
        if is_over(answer):
            return number
        assert answer.status == 200
    raise AssertionError("no budget refused")


def test_a_hard_budget_is_never_exceeded_and_says_why(gateway: Gateway, fake: FakeUpstream) -> None:
    content = body(max_tokens=3)
    limit = 5 * price(7, 3) + worst(content, 3)
    put(gateway, limit)
    eventually(lambda: is_over(ask(gateway, request(gateway.key, body(max_tokens=3)))) or None, "it is used up")
    assert spent(gateway) <= limit
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, content))
    assert len(asked(fake)) == before
    message = answer.json["error"]["message"]
    assert message.startswith("this request needs at least 0.0000")
    assert f"of the budget of {usd(limit).rstrip('0')} usd a month there is left 0.000" in message
    assert "it begins anew at 20" in message
    assert answer.json["error"]["type"] == "billing_error"
    shown = json.loads(gateway.weir("customer", "show", "acme", "--json"))["budgets"]
    assert [(each["per"], each["used"]) for each in shown] == [("month", usd(spent(gateway)))]


def test_what_a_request_may_generate_is_clamped_to_the_smallest_budget(gateway: Gateway, fake: FakeUpstream) -> None:
    content = body(max_completion_tokens=50_000)
    key = gateway.new_key("--budget", usd(worst(content, 500)), "--per", "day")
    put(gateway, worst(content, 1_000))
    before = len(asked(fake))
    assert ask(gateway, request(key, content)).status == 200
    assert 500 <= json.loads(next_record(fake, before).body)["max_completion_tokens"] < 1_000
    gateway.stop()
    assert {row["held"] for row in json.loads(gateway.weir("customer", "show", "acme", "--json"))["budgets"]} == {
        "0.000000000000"
    }


def test_a_keys_budget_leaves_the_customers_other_keys_alone(gateway: Gateway) -> None:
    content = body(max_tokens=3)
    key = gateway.new_key("--budget", usd(worst(content, 3)), "--per", "day")
    assert until_over(gateway, key, content) > 0
    assert ask(gateway, request(gateway.key, content)).status == 200
    message = ask(gateway, request(key, content)).json["error"]["message"]
    assert "of this key's budget of " in message


def test_a_soft_budget_refuses_nothing(gateway: Gateway) -> None:
    put(gateway, 1, "month", "--soft")
    key = gateway.new_customer("globex")
    put(gateway, 0, "day", "--soft", customer="globex")
    assert ask(gateway, request(gateway.key)).status == 200
    assert ask(gateway, request(key)).status == 200


def test_what_a_budget_refuses_counts_against_no_rate_limit(gateway: Gateway) -> None:
    key = gateway.new_key("--rpm", "2", "--budget", "0", "--per", "day")
    for _ in range(4):
        answer = ask(gateway, request(key))
        assert is_over(answer)
        assert answer.header("x-ratelimit-remaining-requests") == "2"


def test_when_both_fall_short_it_is_the_credit(gateway: Gateway) -> None:
    gateway.weir("customer", "add", "prepaid", "--prepaid")
    key = gateway.new_key(customer="prepaid")
    put(gateway, 0, customer="prepaid")
    gateway.await_changes()
    answer = ask(gateway, request(key))
    assert (answer.status, answer.code) == (402, "insufficient_credits")
    gateway.weir("credit", "grant", "prepaid", "5")
    eventually(lambda: is_over(ask(gateway, request(key))) or None, "now the budget alone falls short")
    gateway.stop()
    shown = json.loads(gateway.weir("credit", "show", "prepaid", "--json"))
    assert (shown["balance"], shown["held"]) == (usd(5 * 10**12), usd(0))


def test_a_change_of_a_budget_holds_within_a_second(gateway: Gateway) -> None:
    """Set where there was none, raised, and lifted."""
    put(gateway, 0)
    eventually(lambda: is_over(ask(gateway, request(gateway.key))) or None, "set")
    put(gateway, 10**12)
    eventually(lambda: ask(gateway, request(gateway.key)).status == 200 or None, "raised")
    put(gateway, 0)
    eventually(lambda: is_over(ask(gateway, request(gateway.key))) or None, "lowered")
    gateway.weir("customer", "set", "acme", "--budget", "none", "--per", "month")
    eventually(lambda: ask(gateway, request(gateway.key)).status == 200 or None, "lifted")


def test_a_credit_limit_is_for_what_is_unpaid(gateway: Gateway) -> None:
    content = body(max_tokens=3)
    gateway.weir("customer", "set", "acme", "--credit-limit", usd(worst(content, 3)))
    refused = eventually(
        lambda: found if (found := ask(gateway, request(gateway.key, content))).status == 402 else None, "used up"
    )
    assert refused.code == "insufficient_credits"
    assert "of the credit limit of " in refused.json["error"]["message"]
    gateway.weir("customer", "set", "acme", "--paid-until", "+2h")
    eventually(lambda: ask(gateway, request(gateway.key, content)).status == 200 or None, "paid")


def test_who_is_not_prepaid_uses_credit_first(gateway: Gateway) -> None:
    """To the unit, once gateways know of it; the rest is metered."""
    credit = 2 * price(7, 3) + 5
    gateway.weir("credit", "grant", "acme", usd(credit))

    def is_used_up() -> bool:
        assert ask(gateway, request(gateway.key)).status == 200
        return bool(json.loads(gateway.weir("credit", "show", "acme", "--json"))["balance"] == usd(0))

    eventually(is_used_up, "the credit is used")
    gateway.stop()
    columns = ("credit_micro", "credit_pico", "assigned_micro", "assigned_pico")
    (row,) = gateway.rows(f"SELECT {', '.join(f'SUM({name}) AS {name}' for name in columns)} FROM usage_hourly")
    paid, assigned = (int(row[f"{name}_micro"]) * 10**6 + int(row[f"{name}_pico"]) for name in ("credit", "assigned"))
    assert paid == assigned == credit < spent(gateway)
    gateway.assert_sums_agree()


def test_workers_share_one_budget(fake: FakeUpstream, tmp_path: Path, database_url: str) -> None:
    """Two processes, many requests at once: nothing over it, and most of it is used."""
    home = tmp_path / "gateway"
    content = body(max_tokens=100)
    limit = 10 * worst(content, 100)
    fake.always(CHAT, plain(prompt=7, completion=100))
    with Gateway(home, Upstream(fake.url), database_url=database_url, settings={"workers": 2}) as gateway:
        put(gateway, limit)
        gateway.restart()  # so that both workers know of it
        with ThreadPoolExecutor(16) as clients:
            answers = list(clients.map(lambda _: ask(gateway, request(gateway.key, content)), range(150)))
        kinds = Counter(answer.status for answer in answers)
        assert set(kinds) <= {200, 402}
        assert kinds[200] >= 10
        assert spent(gateway) <= limit
        assert gateway.stop() == 0
        (shown,) = json.loads(gateway.weir("customer", "show", "acme", "--json"))["budgets"]
        assert (shown["used"], shown["held"]) == (usd(spent(gateway)), usd(0))


def test_a_killed_gateways_holds_are_free_again(gateway: Gateway, fake: FakeUpstream) -> None:
    """What was running is held until its lease ran out; what was recorded is used."""
    put(gateway, 10**9)
    gateway.restart()  # so that it knows of it
    paid = ask(gateway, request(gateway.key))
    assert paid.status == 200
    gate = Gate()
    script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate))
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        client.until(b"one")
        gateway.kill9()
        gate.open()
    (shown,) = json.loads(gateway.weir("customer", "show", "acme", "--json"))["budgets"]
    assert Decimal(shown["held"]) > 0
    gateway.start()
    assert ask(gateway, request(gateway.key)).status == 200
