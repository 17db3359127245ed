"""What a key says of clients that leave: `cancel` stops the model server, `drain` lets it finish and bills it all."""

import json
import signal
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.acceptance.harness import MODEL, Gateway, Key, Upstream, eventually, price
from tests.acceptance.raw import Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, next_record, plain, script_chat
from tests.emulators.upstream import (
    Await,
    FakeUpstream,
    Gate,
    Reset,
    Silence,
    Step,
    chat_chunk,
    done,
    event,
    json_answer,
    last_chunk,
    sse_head,
    usage_chunk,
)

IMPATIENT = "impatient"
GRACE_S = 1
REST: tuple[Step, ...] = (event(chat_chunk(" two three")), event(usage_chunk(50, 40)), done(), last_chunk())


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstreams = (
        Upstream(fake.url, "main"),
        Upstream(fake.url, "strict", {IMPATIENT: MODEL}, {"idle_timeout_s": 1}),
    )
    home = tmp_path_factory.mktemp("gateway")
    with Gateway(home, *upstreams, settings={"shutdown_grace_s": GRACE_S}) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway, started again by the test that stopped it."""
    if shared.status("/healthz") is None:
        shared.end()
        shared.start()
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


@pytest.fixture
def drain(gateway: Gateway) -> Key:
    """A key whose answers are drained, one at a time."""
    return gateway.new_key("--on-disconnect", "drain", "--concurrency", "1")


def leave_in_stream(gateway: Gateway, key: Key, **fields: Any) -> str:
    """A client that leaves once it has a first token; gives the request's id."""
    client = Raw(gateway)
    client.send(request(key, body(stream=True, **fields)))
    head = client.head()
    client.until(b"one")
    client.close()
    return head.id


def is_free(gateway: Gateway, key: Key) -> bool:
    """Whether a key with one place has it free."""
    return ask(gateway, request(key)).status == 200


def test_a_drained_stream_is_read_to_its_end_and_billed_as_reported(
    gateway: Gateway, fake: FakeUpstream, drain: Key
) -> None:
    gate = Gate()
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), *REST)
    request_id = leave_in_stream(gateway, drain)
    record = next_record(fake, before)
    eventually(lambda: not is_free(gateway, drain), "its place stays taken")
    assert not record.client_closed.is_set()
    gate.open()
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"]) == ("client_closed", "upstream")
    assert (row["input_tokens"], row["output_tokens"]) == (50, 40)
    assert row["amount_pico"] == price(50, 40)
    assert not record.left_early
    assert eventually(lambda: is_free(gateway, drain), "its place is given back")


@pytest.mark.parametrize("answer", [(plain(50, 40),), (sse_head(), event(chat_chunk("one")), *REST)])
def test_a_client_that_leaves_before_the_first_byte_is_drained_as_well(
    gateway: Gateway, fake: FakeUpstream, drain: Key, answer: tuple[Step, ...]
) -> None:
    gate = Gate()
    before = script_chat(fake, Await(gate), *answer)
    client = Raw(gateway)
    client.send(request(drain, body(stream=len(answer) > 1)))
    record = next_record(fake, before)
    client.reset()
    eventually(lambda: "weir_requests_in_flight 1" in metrics(gateway), "it goes on")
    assert not record.client_closed.is_set()
    gate.open()
    row = gateway.event(record.header("x-request-id") or "")
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "upstream", 40)


def metrics(gateway: Gateway) -> str:
    """The page that Prometheus reads."""
    return ask(gateway, request(None, b"", method="GET", path="/metrics")).body.decode()


def test_a_drain_ends_when_its_tokens_are_used_up(gateway: Gateway, fake: FakeUpstream) -> None:
    key = gateway.new_key("--on-disconnect", "drain:2")
    gate, never = Gate(), Gate()
    more = [event(chat_chunk(text)) for text in (" two", " three")]
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), *more, Await(never), *REST)
    request_id = leave_in_stream(gateway, key)
    record = next_record(fake, before)
    assert not record.client_closed.wait(0.2), "two more are let through"
    gate.open()
    assert record.client_closed.wait(20), "and then it is stopped"
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "counted", 3)


@pytest.mark.parametrize(("limit", "is_drained"), [(2, True), (3, False), (None, False)])
def test_an_answer_that_shows_no_tokens_is_drained_only_within_its_own_limit(
    gateway: Gateway, fake: FakeUpstream, limit: int | None, *, is_drained: bool
) -> None:
    key = gateway.new_key("--on-disconnect", "drain:2")
    gate = Gate()
    before = script_chat(fake, Await(gate), plain(50, 2))
    client = Raw(gateway)
    client.send(request(key, body(max_tokens=limit)))
    record = next_record(fake, before)
    client.close()
    if is_drained:
        eventually(lambda: "weir_requests_in_flight 1" in metrics(gateway), "it goes on")
        assert not record.client_closed.is_set()
        gate.open()
    else:
        assert record.client_closed.wait(20)
    row = gateway.event(record.header("x-request-id") or "")
    assert (row["outcome"], row["output_tokens"]) == ("client_closed", 2 if is_drained else 0)
    assert row["count_source"] == ("upstream" if is_drained else "counted")


def test_what_a_slow_reader_held_back_flows_when_it_leaves(gateway: Gateway, fake: FakeUpstream, drain: Key) -> None:
    big = [event({**chat_chunk("one"), "padding": "x" * 1_000_000}) for _ in range(32)]
    before = script_chat(fake, sse_head(), *big, *REST)
    client = Raw(gateway, receive_buffer=65_536)
    client.send(request(drain, body(stream=True)))
    head = client.head()
    record = next_record(fake, before)
    assert not record.finished.wait(0.3), "it is held back"
    client.reset()
    assert record.finished.wait(20)
    row = gateway.event(head.id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "upstream", 40)


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [((Reset(),), "upstream_error"), ((event({"error": {"message": "no"}}), last_chunk()), "upstream_error")],
)
def test_a_drained_stream_that_breaks_is_billed_for_what_came(
    gateway: Gateway, fake: FakeUpstream, drain: Key, steps: tuple[Step, ...], outcome: str
) -> None:
    gate = Gate()
    script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), event(chat_chunk(" two")), *steps)
    request_id = leave_in_stream(gateway, drain)
    gate.open()
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == (outcome, "counted", 2)
    assert eventually(lambda: is_free(gateway, drain), "its place is given back")


@pytest.mark.parametrize("steps", [(Reset(),), (json_answer({"error": {"message": "no"}}, status=500),)])
def test_a_drained_request_that_fails_before_a_token_costs_nothing(
    gateway: Gateway, fake: FakeUpstream, drain: Key, steps: tuple[Step, ...]
) -> None:
    gate = Gate()
    before, events = script_chat(fake, Await(gate), *steps), len(gateway.events())
    client = Raw(gateway)
    client.send(request(drain))
    next_record(fake, before)
    client.close()
    eventually(lambda: "weir_requests_in_flight 1" in metrics(gateway), "it goes on")
    gate.open()
    assert eventually(lambda: is_free(gateway, drain), "its place is given back")
    assert len(gateway.events()) == events + 1, "that of the last request alone"


def test_a_drained_stream_that_falls_silent_ends_after_the_idle_time(
    gateway: Gateway, fake: FakeUpstream, drain: Key
) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Silence())
    request_id = leave_in_stream(gateway, drain, model=IMPATIENT)
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(request_id)
    assert (row["outcome"], row["output_tokens"]) == ("upstream_error", 1)


def test_a_gateway_that_stops_gives_a_drain_its_grace(gateway: Gateway, fake: FakeUpstream, drain: Key) -> None:
    gate = Gate()
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), *REST)
    request_id = leave_in_stream(gateway, drain)
    record = next_record(fake, before)
    process = gateway.terminate()
    eventually(lambda: gateway.status("/healthz") is None, "it takes no new connections")
    gate.open()
    assert process.wait(30) == 0
    gateway.forget()
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "upstream", 40)
    assert not record.left_early


def test_a_drain_beyond_the_grace_is_billed_for_what_came(gateway: Gateway, fake: FakeUpstream, drain: Key) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Silence())
    request_id = leave_in_stream(gateway, drain)
    record = next_record(fake, before)
    assert gateway.stop(signal.SIGTERM) == 0
    assert record.client_closed.wait(20)
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "counted", 1)


def test_the_credit_of_a_drained_request_stays_held_until_its_end(gateway: Gateway, fake: FakeUpstream) -> None:
    customer = json.loads(gateway.weir("customer", "add", "prepaid", "--prepaid", "--json"))["id"]
    # Enough for one request with these tokens, and not for two.
    gateway.weir("credit", "grant", customer, f"{Decimal(price(1_200, 1_000)).scaleb(-12):f}")
    key = gateway.new_key("--on-disconnect", "drain", customer="prepaid")
    gate = Gate()
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), *REST)
    request_id = leave_in_stream(gateway, key, max_tokens=1_000)
    next_record(fake, before)
    refused = ask(gateway, request(key, body("x" * 200, max_tokens=1)))
    assert refused.status == 402, "the tokens that may still come are held"
    gate.open()
    assert gateway.event(request_id)["amount_pico"] == price(50, 40)
    assert eventually(lambda: ask(gateway, request(key, body("x" * 200, max_tokens=1))).status == 200, "it is free")


def test_other_keys_cancel_as_ever(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("one")), Silence())
    request_id = leave_in_stream(gateway, gateway.new_key("--on-disconnect", "cancel"))
    assert next_record(fake, before).client_closed.wait(20)
    row = gateway.event(request_id)
    assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "counted", 1)
    assert len(asked(fake)) == before + 1


def test_the_list_of_keys_tells_their_policy(gateway: Gateway) -> None:
    with sqlite3.connect(gateway.home / "weir.db") as ledger:
        ledger.execute("PRAGMA query_only = 1")
        kept = {}
        for policy in ("cancel", "drain", "drain:0", "DRAIN:500"):
            key = gateway.new_key("--on-disconnect", policy)
            kept[key.id] = ledger.execute("SELECT drain_tokens FROM api_keys WHERE id = ?", (key.id,)).fetchone()[0]
    assert list(kept.values()) == [0, None, 0, 500]
    listed = {row["id"]: row["on_disconnect"] for row in json.loads(gateway.weir("key", "list", "--json"))}
    assert [listed[key] for key in kept] == ["cancel", "drain", "cancel", "drain:500"]
    assert listed[gateway.key.id] == "cancel"
