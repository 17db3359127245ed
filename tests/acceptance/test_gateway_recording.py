"""Recorded before released (I1), delivered is billed (I2): with the ledger blocked, and with clients that leave."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.acceptance.harness import MODEL, Gateway, Upstream, eventually, price, sqlite_locked
from tests.acceptance.raw import CHAT, Answer, CutError, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, next_record, plain, script_chat, streamed
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

QUIET_S = 0.4
FULL, IMPATIENT = "full", "impatient"
RSS_GROWTH_KIB_MAX = 24_000
BIG = "0123456789" * 100_000


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def full_port() -> Iterator[int]:
    """A port whose server accepts nobody and whose queue is full: a connection attempt hangs."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, full_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    upstreams = (
        Upstream(fake.url, "main"),
        Upstream(f"http://127.0.0.1:{full_port}", "full", {FULL: MODEL}, {"connect_timeout_s": 1}),
        Upstream(fake.url, "strict", {IMPATIENT: MODEL}, {"idle_timeout_s": 1}),
    )
    with Gateway(tmp_path_factory.mktemp("gateway"), *upstreams) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway; a traceback in its log fails the test, and it has to serve after each."""
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()
    assert ask(shared, request(shared.key)).status == 200, "it still serves"


def is_recorded(gateway: Gateway, answer: Answer) -> bool:
    """Whether the event is there now."""
    return answer.id in {row["id"] for row in gateway.events()}


# recorded before released


def test_a_plain_answer_waits_for_its_record(gateway: Gateway, fake: FakeUpstream) -> None:
    with Raw(gateway) as client:
        with sqlite_locked(gateway):
            before = len(asked(fake))
            client.send(request(gateway.key))
            assert next_record(fake, before).finished.wait(20)
            assert client.quiet_for(QUIET_S)
        answer = client.answer()
        assert answer.status == 200
        assert is_recorded(gateway, answer)


def test_a_streams_last_event_waits_for_its_record(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, *streamed("Hel", "lo", completion=2))
    with Raw(gateway) as client:
        with sqlite_locked(gateway):
            client.send(request(gateway.key, body(stream=True)))
            answer = client.head()
            client.until(b'"finish_reason":"stop"')
            client.until(b"\n\n\r\n")
            assert next_record(fake, before).finished.wait(20)
            assert client.quiet_for(QUIET_S)
        assert b"data: [DONE]\n\n" in client.rest_of_body()
        assert is_recorded(gateway, answer)


def test_all_who_wait_are_released_together(gateway: Gateway) -> None:
    with ThreadPoolExecutor(40) as threads:
        with sqlite_locked(gateway):
            answers = [threads.submit(ask, gateway, request(gateway.key)) for _ in range(40)]
            time.sleep(QUIET_S)  # the behaviour under test is that nothing happens in the meantime
            assert not any(answer.done() for answer in answers)
        assert {answer.result().status for answer in answers} == {200}
        assert all(is_recorded(gateway, answer.result()) for answer in answers)


def test_whoever_has_the_last_byte_finds_the_event(gateway: Gateway, fake: FakeUpstream) -> None:
    """No poll: the moment at which the answer is whole is the moment to look."""
    fake.script(*streamed("a", completion=2), path=CHAT, times=30)
    with Raw(gateway) as client:
        for _ in range(30):
            answer = client.ask(request(gateway.key, body(stream=True)))
            assert is_recorded(gateway, answer)
            answer = client.ask(request(gateway.key, body(stream=False)))
            assert is_recorded(gateway, answer)


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "plain"])
def test_while_the_ledger_is_locked_usage_is_spooled_and_comes_to_the_ledger_once(
    gateway: Gateway, fake: FakeUpstream, streams: bool
) -> None:
    fake.script(*(streamed("Hello", completion=2) if streams else (plain(),)), path=CHAT, times=3)
    before = len(gateway.events())
    with Raw(gateway) as client, sqlite_locked(gateway):
        answers = [client.ask(request(gateway.key, body(stream=streams))) for _ in range(3)]
        assert {answer.status for answer in answers} == {200}
        assert all((b"[DONE]" in answer.body) is streams for answer in answers)
        assert len(gateway.events()) == before
        assert gateway.status("/readyz") == 200
        assert gateway.readiness["status"] == "degraded"
        assert gateway.readiness["checks"]["spool"] == "3 events wait for the database"
    gateway.await_drained()
    assert [row["id"] for row in gateway.events()[before:]] == [answer.id for answer in answers]


# clients that leave


def test_a_client_that_leaves_before_the_first_byte_pays_for_its_prompt(gateway: Gateway, fake: FakeUpstream) -> None:
    for hang_up in (Raw.close, Raw.reset):
        before = script_chat(fake, Await(Gate()))
        client = Raw(gateway)
        client.send(request(gateway.key))
        record = next_record(fake, before)
        hang_up(client)
        assert record.client_closed.wait(20), "the upstream is told at once"
        row = gateway.event(record.header("x-request-id") or "")
        assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "counted", 0)
        assert row["input_tokens"] > 0
        assert row["amount_pico"] == price(row["input_tokens"], 0)


def test_a_client_that_leaves_a_stream_pays_for_what_was_delivered(gateway: Gateway, fake: FakeUpstream) -> None:
    for hang_up in (Raw.close, Raw.reset):
        deltas = [event(chat_chunk(text)) for text in ("Hello", "!", " This")]
        before = script_chat(fake, sse_head(), *deltas, Await(Gate()))
        client = Raw(gateway)
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        client.until(b" This")
        hang_up(client)
        assert next_record(fake, before).client_closed.wait(20), "the upstream is told at once"
        row = gateway.event(answer.id)
        assert (row["outcome"], row["count_source"], row["output_tokens"]) == ("client_closed", "counted", 3)
        assert row["http_status"] == 200
        assert row["first_token_at"] is not None


def test_a_client_that_leaves_between_the_last_token_and_the_record_pays_for_all(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    before = script_chat(fake, *streamed("Hello", prompt=50, completion=40))
    client = Raw(gateway)
    with sqlite_locked(gateway):
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        assert next_record(fake, before).finished.wait(20)
        client.until(b'"stop"')
        client.reset()
        assert gateway.status("/healthz") == 200
    row = gateway.event(answer.id)
    assert (row["outcome"], row["input_tokens"], row["output_tokens"]) == ("completed", 50, 40)


def test_a_client_that_leaves_while_the_upstream_is_dialled_pays_nothing(gateway: Gateway) -> None:
    before = len(gateway.events())
    client = Raw(gateway)
    client.send(request(gateway.key, body(model=FULL)))
    assert client.quiet_for(0.2)
    client.close()
    answer = ask(gateway, request(gateway.key, body(model=FULL)))
    assert (answer.status, answer.code) == (503, "no_upstream")
    assert len(gateway.events()) == before


def test_clients_that_come_and_leave_at_any_moment_leave_nothing_open(gateway: Gateway, fake: FakeUpstream) -> None:
    """Each leaves some microseconds later than the one before; nobody is billed twice, nothing is left running."""
    count = 60
    gate = Gate()
    fake.script(sse_head(), event(chat_chunk("a")), Await(gate), path=CHAT, times=count)
    for delay in range(count):
        client = Raw(gateway)
        client.send(request(gateway.key, body(stream=True)))
        deadline = time.perf_counter() + delay * 50e-6
        while time.perf_counter() < deadline:
            pass
        client.reset()
    key = gateway.new_key("--concurrency", "1")
    while fake.scripts_left:  # those that left before their request went upstream
        with Raw(gateway) as client:
            client.send(request(gateway.key, body(stream=True)))
            client.head()
    eventually(lambda: ask(gateway, request(key)).status == 200, "it serves")
    idle = "weir_requests_in_flight 0"
    eventually(lambda: idle in metrics(gateway), "no request is left in flight")
    ids = [row["id"] for row in gateway.events()]
    assert len(ids) == len(set(ids))


def metrics(gateway: Gateway) -> str:
    """The page that Prometheus reads."""
    return ask(gateway, request(None, b"", method="GET", path="/metrics")).body.decode()


def test_a_queued_request_of_a_client_that_left_is_not_run(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("a")), Await(Gate()))
    client = Raw(gateway)
    client.send(request(gateway.key, body(stream=True)) + request(gateway.key))
    client.until(b'"a"')
    client.reset()
    record = next_record(fake, before)
    assert record.client_closed.wait(20), "the upstream is told"
    assert len(asked(fake)) == before + 1


# clients that read slowly


def test_a_client_that_does_not_read_holds_the_upstream_back_and_costs_no_memory(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    count, clients = 320, 4
    before_kib = gateway.rss_kib
    before = len(asked(fake))
    text = BIG[: len(BIG) // 10]
    events = [event({**chat_chunk("a"), "padding": text}) for _ in range(count)]
    fake.script(sse_head(), *events, event(usage_chunk(7, 9)), done(), last_chunk(), path=CHAT, times=clients)
    with ExitStack() as open_clients:
        raws = [open_clients.enter_context(Raw(gateway, receive_buffer=65_536)) for _ in range(clients)]
        for raw in raws:
            raw.send(request(gateway.key, body(stream=True)))
        eventually(lambda: len(asked(fake)) == before + clients, "all are asked")
        records = asked(fake)[before:]
        sent = [0] * clients
        while (now := [len(record.sent) for record in records]) != sent:
            sent = now
            assert gateway.status("/healthz") == 200
            time.sleep(0.2)  # between two looks at whether anything still flows
        assert max(sent) < count * len(text) / 2, "the upstream is held back"
        assert gateway.rss_kib - before_kib < RSS_GROWTH_KIB_MAX
        answers = [raw.answer() for raw in raws]
    assert gateway.rss_kib - before_kib < RSS_GROWTH_KIB_MAX
    for answer in answers:
        assert len(answer.body) > count * len(text)
        assert answer.events[-1] == b"[DONE]"
        assert gateway.event(answer.id)["output_tokens"] == 9


def test_a_stream_behind_an_unread_answer_is_held_back_too(gateway: Gateway, fake: FakeUpstream) -> None:
    """The client's buffer is full before the second request begins: no further notice of that will come."""
    before_kib = gateway.rss_kib
    script_chat(fake, plain(text=BIG * 8))
    before = script_chat(fake, sse_head(), *[event(chat_chunk(BIG)) for _ in range(32)], done(), last_chunk())
    with Raw(gateway, receive_buffer=65_536) as client:
        client.send(request(gateway.key) + request(gateway.key, body(stream=True)))
        record = next_record(fake, before)
        sent = -1
        while (now := len(record.sent)) != sent:
            sent = now
            time.sleep(0.2)
        assert sent < 16 * len(BIG), "the upstream is held back"
        assert gateway.rss_kib - before_kib < 3 * RSS_GROWTH_KIB_MAX  # the first answer is held whole
        assert len(client.answer().body) > 8 * len(BIG)
        assert len(client.answer().body) > 32 * len(BIG)


def test_connections_to_the_upstream_are_fit_for_use_after_slow_readers(gateway: Gateway, fake: FakeUpstream) -> None:
    for size in range(20, 320, 20):
        script_chat(fake, *streamed("x" * size * 1000, completion=2))
        with Raw(gateway, receive_buffer=4_096) as client:
            client.send(request(gateway.key, body(stream=True)))
            client.head()
            time.sleep(0.01)  # the slow reader
            client.rest_of_body()
        assert ask(gateway, request(gateway.key)).status == 200


def test_a_client_that_never_reads_is_taken_for_gone(gateway: Gateway, fake: FakeUpstream) -> None:
    events = [event(chat_chunk(BIG)) for _ in range(32)]
    before = script_chat(fake, sse_head(), *events, event(usage_chunk(7, 9)), done(), last_chunk())
    with Raw(gateway, receive_buffer=65_536) as client:
        client.send(request(gateway.key, body(model=IMPATIENT, stream=True)))
        answer = client.head()
        record = next_record(fake, before)
        assert record.client_closed.wait(20), "the upstream is free again"
        assert gateway.event(answer.id)["outcome"] == "client_closed"
        with pytest.raises((CutError, ConnectionResetError)):
            client.rest_of_body()
