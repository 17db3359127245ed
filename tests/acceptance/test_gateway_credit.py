"""Prepaid customers at a running gateway: what is admitted, clamped, refused, charged and given back.

The ledger is read behind its back; `CreditBench.audit` proves after each test that nothing was overspent.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing import clock
from billing.clock import Instant
from tests.acceptance.harness import INPUT_PICO, MODEL, OUTPUT_PICO, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import CHAT, COMPLETIONS, Answer, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, next_record, plain, script_chat, streamed
from tests.credit_bench import CreditBench
from tests.emulators.upstream import Await, FakeUpstream, Gate, Reset, chat_chunk, event, json_answer, sse_head

DEFAULT_TOKENS = 4_096


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


class Prepaid:
    """A prepaid customer, a key of it, and its credit."""

    def __init__(self, gateway: Gateway, name: str = "prepaid") -> None:
        self.gateway = gateway
        self.id: str = json.loads(gateway.weir("customer", "add", name, "--prepaid", "--json"))["id"]
        self.key: Key = gateway.new_key(customer=name)
        self.bench = CreditBench(gateway.database_url)

    def grant(self, pico: int) -> None:
        """Give credit, in picounits."""
        self.gateway.weir("credit", "grant", self.id, f"{Decimal(pico).scaleb(-12):f}")

    def show(self) -> tuple[int, int, int]:
        """Balance, held and available, as `weir credit show` tells them, in picounits."""
        shown = json.loads(self.gateway.weir("credit", "show", self.id, "--json"))
        return tuple(int(Decimal(shown[name]).scaleb(12)) for name in ("balance", "held", "available"))  # type: ignore[return-value]

    def audit(self) -> None:
        """Fail if the ledger's rows do not prove that nothing was overspent."""
        self.bench.at = clock.now()
        self.bench.audit(self.id)
        self.bench.database.close()


@pytest.fixture
def prepaid(gateway: Gateway) -> Iterator[Prepaid]:
    """A prepaid customer, audited at the end."""
    made = Prepaid(gateway)
    yield made
    made.audit()


def sent(fake: FakeUpstream, before: int) -> dict[str, Any]:
    """The body that the upstream saw."""
    found: dict[str, Any] = json.loads(next_record(fake, before).body)
    return found


def bound(content: object) -> int:
    """What the prompt of this body is held at: its bytes, and what a template may add."""
    return len(json.dumps(content).encode()) + 1_024


def is_refused(answer: Answer) -> bool:
    """Whether it is the 402 of the contract."""
    return answer.status == 402 and answer.code == "insufficient_credits"


def test_without_credit_a_prepaid_customer_gets_nothing_but_the_reason(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(prepaid.key))
    assert is_refused(answer)
    error = answer.json["error"]
    assert error["type"] == "billing_error"
    assert "this request needs at least 0.00000" in error["message"]
    assert "the prepaid balance is 0 usd" in error["message"]
    assert len(asked(fake)) == before
    assert gateway.events() == []


def test_credit_pays_to_the_unit_and_needs_no_restart(gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid) -> None:
    assert is_refused(ask(gateway, request(prepaid.key)))
    prepaid.grant(10**12)
    answer = eventually(lambda: None if is_refused(found := ask(gateway, request(prepaid.key))) else found, "credit")
    assert answer.status == 200
    assert gateway.event(answer.id)["amount_pico"] == price(7, 3)
    assert prepaid.show()[0] == 10**12 - price(7, 3)
    gateway.stop()
    assert prepaid.show() == (10**12 - price(7, 3), 0, 10**12 - price(7, 3))


def test_only_prepaid_requests_are_limited(gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid) -> None:
    """`limits.default_max_output_tokens` where the client gave none; a postpaid body is what the client sent."""
    prepaid.grant(10**12)
    for key, limit in ((gateway.key, None), (prepaid.key, DEFAULT_TOKENS)):
        before = len(asked(fake))
        assert ask(gateway, request(key)).status == 200
        assert sent(fake, before).get("max_tokens") == limit


def test_a_small_balance_clamps_what_a_request_may_generate(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """To what is affordable by the bound of its prompt, in the field that the client used; and no answer costs more."""
    content = body("x" * 4_000, max_completion_tokens=50_000)
    prepaid.grant(bound(content) * INPUT_PICO + 20_000 * OUTPUT_PICO + 77)
    before = script_chat(fake, plain(prompt=510, completion=60_000))
    answer = ask(gateway, request(prepaid.key, content))
    assert answer.status == 200
    seen = sent(fake, before)
    # The prompt was counted (some 500 tokens and not 5,000), so that more than 20,000 tokens are affordable.
    assert 20_000 < seen["max_completion_tokens"] < 21_500
    row = gateway.event(answer.id)
    assert row["output_tokens"] == seen["max_completion_tokens"]
    assert row["anomaly"] == "output_exceeds_limit,output_mismatch"  # one word was delivered
    assert row["amount_pico"] <= bound(content) * INPUT_PICO + 20_000 * OUTPUT_PICO + 77


def test_where_not_one_token_is_affordable_the_request_is_refused(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """Both amounts are in the answer, so that a client can tell by how much."""
    prepaid.grant(1_000)
    answer = ask(gateway, request(prepaid.key))
    assert is_refused(answer)
    assert "the prepaid balance is 0.000000001 usd" in answer.json["error"]["message"]
    assert prepaid.show()[0] == 1_000


def test_a_stream_is_charged_for_what_it_delivered(gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid) -> None:
    prepaid.grant(10**12)
    script_chat(fake, *streamed("Hel", "lo"))
    answer = ask(gateway, request(prepaid.key, body(stream=True)))
    assert gateway.event(answer.id)["amount_pico"] == price(7, 3)
    assert prepaid.show()[0] == 10**12 - price(7, 3)


def test_a_client_that_leaves_frees_what_was_held_and_pays_for_what_came(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    prepaid.grant(10**12)
    gate = Gate()
    script_chat(fake, sse_head(), event(chat_chunk("one two")), Await(gate))
    client = Raw(gateway)
    client.send(request(prepaid.key, body(stream=True)))
    client.until(b"one two")
    client.close()
    (row,) = eventually(gateway.events, "it is recorded")
    gate.open()
    assert (row["outcome"], row["output_tokens"] > 0) == ("client_closed", True)
    gateway.stop()
    assert prepaid.show() == (10**12 - row["amount_pico"], 0, 10**12 - row["amount_pico"])


def test_what_fails_before_a_token_costs_nothing_and_holds_nothing(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """An upstream's own error, one that dies before a token, a stream that breaks before one."""
    prepaid.grant(10**12)
    for steps in ((json_answer({"error": {"message": "no"}}, status=500),), (Reset(),), (sse_head(), Reset())):
        fake.always(CHAT, *steps)  # whatever is dialled again fails again
        with Raw(gateway) as client:
            client.send(request(prepaid.key, body(stream=True)))
            assert client.answer().status in (200, 500, 502, 503)
    gateway.stop()
    assert gateway.events() == []
    assert prepaid.show() == (10**12, 0, 10**12)


def test_many_requests_at_once_never_cost_more_than_there_is(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """Each is answered or refused; the answered ones come to at most the credit, and most of it is used."""
    content = body(max_tokens=100)
    worst = bound(content) * INPUT_PICO + 100 * OUTPUT_PICO
    prepaid.grant(10 * worst + worst // 2)
    fake.always(CHAT, plain(prompt=7, completion=100))
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: ask(gateway, request(prepaid.key, content)), range(120)))
    fake.always(CHAT, plain())
    kinds = Counter(answer.status for answer in answers)
    assert set(kinds) <= {200, 402}
    assert kinds[200] >= 10
    assert sum(event["amount_pico"] for event in gateway.events()) <= 10 * worst + worst // 2


def test_a_gateway_that_is_killed_gives_back_what_it_held(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """Once its lease ran out: what was recorded is used, what was running is free."""
    prepaid.grant(10**9)
    paid = ask(gateway, request(prepaid.key))
    gate = Gate()
    script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate))
    with Raw(gateway) as client:
        client.send(request(prepaid.key, body(stream=True)))
        client.until(b"one")
        gateway.kill9()
        gate.open()
    balance, held, _ = prepaid.show()
    assert balance == 10**9 - gateway.event(paid.id)["amount_pico"]
    assert held > 0
    prepaid.bench.at = Instant(clock.now() + 10**8)
    assert prepaid.bench.standing(prepaid.id) == (balance, 0, balance)
    gateway.start()


def test_a_request_waits_for_its_lease_and_not_for_other_customers(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """A client that leaves while it waits costs nothing and holds nothing."""
    prepaid.grant(10**12)
    client = Raw(gateway)
    client.send(request(prepaid.key))
    client.reset()
    assert ask(gateway, request(gateway.key)).status == 200
    assert ask(gateway, request(prepaid.key)).status == 200
    gateway.stop()
    spent = sum(row["amount_pico"] for row in gateway.events() if row["customer_id"] == prepaid.id)
    assert prepaid.show() == (10**12 - spent, 0, 10**12 - spent)


def test_embedded_prompts_can_not_be_bounded_and_are_refused(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    prepaid.grant(10**12)
    content = {"model": MODEL, "prompt": "hi", "prompt_embeds": "QUJD"}
    answer = ask(gateway, request(prepaid.key, content, path=COMPLETIONS))
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_workers_share_one_balance(fake: FakeUpstream, tmp_path: Path, database_url: str) -> None:
    """Two processes, one credit: together they use what one would."""
    home = tmp_path / "gateway"
    with Gateway(home, Upstream(fake.url), database_url=database_url, settings={"workers": 2}) as gateway:
        prepaid = Prepaid(gateway)
        prepaid.grant(60 * price(7, 3))
        content = body(max_tokens=3)
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda _: ask(gateway, request(prepaid.key, content)), range(200)))
        answered = sum(answer.status == 200 for answer in answers)
        assert all(answer.status == 200 or is_refused(answer) for answer in answers)
        assert 0 < answered <= 60
        spent = sum(row["amount_pico"] for row in gateway.events())
        assert prepaid.show()[0] == 60 * price(7, 3) - spent
        prepaid.audit()


def test_a_prompt_that_was_longer_than_its_bound_is_never_overspent(
    gateway: Gateway, fake: FakeUpstream, prepaid: Prepaid
) -> None:
    """A picture of more tokens than the whole credit: what nothing pays for is written off, and the log says so."""
    prepaid.grant(10**9)
    script_chat(fake, plain(prompt=100_000, completion=3))
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/picture"}}
    answer = ask(gateway, request(prepaid.key, body(messages=[{"role": "user", "content": [picture]}])))
    assert answer.status == 200
    eventually(lambda: len(gateway.events()) == 2, "the event and its correction")
    event_row, correction = sorted(gateway.events(), key=lambda row: row["adjusts"] is not None)
    assert (event_row["id"], event_row["amount_pico"]) == (answer.id, price(100_000, 3))
    assert (correction["adjusts"], correction["amount_pico"]) == (answer.id, 10**9 - price(100_000, 3))
    assert "credit.uncovered" in gateway.log
    assert is_refused(ask(gateway, request(prepaid.key)))
