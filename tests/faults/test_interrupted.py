"""Streams in flight when their gateway dies or sleeps: billed to their last checkpoint, and never twice (I3)."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest

from billing import clock
from tests.acceptance.harness import Gateway, Row, Upstream, eventually, price
from tests.acceptance.raw import CHAT, Raw, ask, body, request
from tests.acceptance.serving import fake_upstream, next_record, script_chat, streamed
from tests.credit_bench import CreditBench
from tests.emulators.upstream import (
    Await,
    FakeUpstream,
    Gate,
    chat_chunk,
    done,
    event,
    last_chunk,
    sse_head,
    usage_chunk,
)

WORDS = ("Hello", "!", " This", " is", " a")
MORE = (" test", " of", " time")


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


class Begun:
    """A stream that has delivered `WORDS` and waits at a gate; then come `MORE`, its usage and its end."""

    def __init__(self, gateway: Gateway, fake: FakeUpstream, clients: ExitStack, secret: str | None = None) -> None:
        """Begin it, and return when the words have arrived."""
        self.gate = Gate()
        deltas = [event(chat_chunk(word)) for word in WORDS]
        rest = [event(chat_chunk(word)) for word in MORE]
        end = [event(chat_chunk({}, finish="stop")), event(usage_chunk(30, 9)), done(), last_chunk()]
        before = script_chat(fake, sse_head(), *deltas, Await(self.gate), *rest, *end)
        self.client = clients.enter_context(Raw(gateway))
        key = gateway.key if secret is None else gateway.new_key(customer=secret)
        self.client.send(request(key, body(stream=True, max_tokens=100)))
        self.id = self.client.head().id
        self.client.until(b'"' + WORDS[-1].encode() + b'"')
        self.client.until(b"\n\n\r\n")
        self.record = next_record(fake, before)


def checkpoints(gateway: Gateway) -> list[Row]:
    """All of them."""
    return gateway.rows("SELECT * FROM inflight ORDER BY id")


def is_checkpointed(gateway: Gateway, *streams: Begun) -> bool:
    """Whether each stream's checkpoint knows all its words, and its prompt."""
    tokens = {row["id"]: row["output_tokens"] for row in checkpoints(gateway) if row["input_tokens"]}
    return all(tokens.get(stream.id) == len(WORDS) for stream in streams)


def test_streams_of_a_killed_gateway_are_billed_to_their_last_checkpoint(gateway: Gateway, fake: FakeUpstream) -> None:
    with ExitStack() as clients:
        streams = [Begun(gateway, fake, clients) for _ in range(3)]
        eventually(lambda: is_checkpointed(gateway, *streams), "they are checkpointed")
        texts = str(checkpoints(gateway))
        assert not any(word.strip() in texts for word in (*WORDS[2:3], "Say hello"))
        gateway.kill9()
    gateway.start()
    for stream in streams:
        row = gateway.event(stream.id)
        assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("interrupted", "counted", len(WORDS))
        assert row["input_tokens"] > 0
        assert row["amount_pico"] == price(row["input_tokens"], len(WORDS))
        assert row["started_at"] < row["first_token_at"] < row["finished_at"]
    eventually(lambda: not checkpoints(gateway), "nothing is left to recover")
    eventually(lambda: not gateway.rows("SELECT * FROM workers"), "nor anybody")
    gateway.restart()
    assert ask(gateway, request(gateway.key)).status == 200
    assert len(gateway.events()) == len(streams) + 1
    gateway.assert_sums_agree()


def test_a_stream_that_ends_well_is_billed_once_and_a_short_one_was_never_checkpointed(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    fake.script(*streamed("a", "b", completion=2), path=CHAT, times=20)
    for _ in range(20):
        assert ask(gateway, request(gateway.key, body(stream=True))).status == 200
    assert gateway.rows("SELECT * FROM workers") == []
    with ExitStack() as clients:
        stream = Begun(gateway, fake, clients)
        eventually(lambda: is_checkpointed(gateway, stream), "it is checkpointed")
        stream.gate.open()
        assert b"[DONE]" in stream.client.rest_of_body()
    row = gateway.event(stream.id)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("completed", 30, 9)
    assert checkpoints(gateway) == [], "it goes with the event, in its transaction"
    assert gateway.stop() == 0
    assert gateway.rows("SELECT * FROM workers") == [], "who ends in good order leaves nothing to recover"


def test_a_gateway_that_slept_and_was_taken_for_dead_bills_the_rest_and_nothing_twice(
    gateway: Gateway, fake: FakeUpstream, tmp_path: Path
) -> None:
    """SIGSTOP for longer than a worker may be silent, while another gateway runs on the same ledger."""
    other = Gateway(tmp_path / "other", Upstream(fake.url), database_url=gateway.database_url)
    other.home.mkdir()
    other.write_config()
    with ExitStack() as clients:
        stream = Begun(gateway, fake, clients)
        eventually(lambda: is_checkpointed(gateway, stream), "it is checkpointed")
        os.kill(gateway.pid, signal.SIGSTOP)
        other.start()
        try:
            cut = other.event(stream.id)
            assert (cut["outcome"], cut["output_tokens"]) == ("interrupted", len(WORDS))
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
            other.end()
        stream.gate.open()
        assert b"[DONE]" in stream.client.rest_of_body(), "the client is not told of it"
    assert gateway.event(stream.id) == cut, "history is append-only"
    (rest,) = [row for row in gateway.events() if row["adjusts"] == stream.id]
    assert (rest["outcome"], rest["anomaly"]) == ("adjustment", "resumed")
    assert cut["input_tokens"] + rest["input_tokens"] == 30
    assert cut["output_tokens"] + rest["output_tokens"] == 9
    assert cut["amount_pico"] + rest["amount_pico"] == price(30, 9)
    assert sum(row["requests"] for row in gateway.rows("SELECT * FROM usage_hourly")) == 1
    other.assert_no_failure()


def test_a_prepaid_customers_interrupted_stream_is_paid_from_its_lease(gateway: Gateway, fake: FakeUpstream) -> None:
    customer = gateway.weir("customer", "add", "prepaid", "--prepaid", "--json").split('"id": "')[1].split('"')[0]
    gateway.weir("credit", "grant", "prepaid", f"{Decimal(price(20_000, 200)).scaleb(-12):f}")
    bench = CreditBench(gateway.database_url)
    with ExitStack() as clients:
        stream = Begun(gateway, fake, clients, "prepaid")
        eventually(lambda: is_checkpointed(gateway, stream), "it is checkpointed")
        gateway.kill9()
    gateway.start()
    row = gateway.event(stream.id)
    assert (row["outcome"], row["customer_id"]) == ("interrupted", customer)
    (charge,) = gateway.rows("SELECT * FROM credit_charges")
    assert (charge["event_id"], charge["amount_pico"]) == (stream.id, row["amount_pico"])
    (lease,) = gateway.rows("SELECT * FROM leases")
    assert (lease["id"], lease["used_pico"]) == (charge["lease_id"], row["amount_pico"])
    bench.at = clock.now()
    bench.audit(customer)
    bench.database.close()
