"""SIGTERM: what runs has its grace, what runs longer is ended and billed, nothing is lost, the exit code is 0."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, eventually, price, sqlite_locked
from tests.acceptance.raw import Answer, CutError, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, gateway_before, next_record, plain, script_chat, streamed
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
from tests.support.forks import Process

GRACE_S = 1
LAST_BYTES_S = 10


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One ledger for the module: setting one up takes longer than the tests."""
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, home: Path) -> Iterator[Gateway]:
    with gateway_before(fake, home, settings={"shutdown_grace_s": GRACE_S}) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway, started again by each test that stopped it."""
    if shared.status("/healthz") is None:
        shared.end()
        shared.start()
    yield shared
    shared.assert_no_failure()
    shared.assert_sums_agree()


def refuses_connections(gateway: Gateway) -> bool:
    """Whether nobody listens on the gateway's port."""
    try:
        socket.create_connection(("127.0.0.1", gateway.port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_an_idle_gateway_ends_at_once_with_0_and_frees_its_port(gateway: Gateway, number: signal.Signals) -> None:
    with Raw(gateway) as client:
        assert client.ask(request(gateway.key)).status == 200
        start = time.monotonic()
        assert gateway.stop(number) == 0
        assert time.monotonic() - start < 20
        assert client.is_closed()
    assert refuses_connections(gateway)
    gateway.start()
    assert ask(gateway, request(gateway.key)).status == 200


def test_what_is_running_has_time_to_finish(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    before = script_chat(
        fake, sse_head(), event(chat_chunk("a")), Await(gate), event(usage_chunk(7, 9)), done(), last_chunk()
    )
    script_chat(fake, Await(gate), plain(completion=5))
    with Raw(gateway) as streaming, Raw(gateway) as whole:
        streaming.send(request(gateway.key, body(stream=True)))
        stream = streaming.head()
        whole.send(request(gateway.key))
        next_record(fake, before + 1)
        process = gateway.terminate()
        eventually(lambda: refuses_connections(gateway), "it takes no new connections")
        gate.open()
        answer = whole.answer()
        assert b"[DONE]" in streaming.rest_of_body()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert streaming.is_closed()
        assert whole.is_closed()
        assert exit_code(gateway, process) == 0
    assert [gateway.event(one.id)["outcome"] for one in (stream, answer)] == ["completed", "completed"]


def exit_code(gateway: Gateway, process: Process) -> int:
    """Wait for a gateway that was told to end."""
    code = process.wait(30)
    gateway.forget()
    return code


def test_a_stream_beyond_the_grace_ends_with_an_error_event_and_is_billed_as_stopped(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    deltas = [event(chat_chunk(text)) for text in ("Hello", "!", " This")]
    before = script_chat(fake, sse_head(), *deltas, Await(Gate()))
    script_chat(fake, sse_head(), Await(Gate()))
    script_chat(fake, Await(Gate()))
    with Raw(gateway) as told, Raw(gateway) as silent, Raw(gateway) as whole:
        for number, (client, streams) in enumerate(((told, True), (silent, True), (whole, False))):
            client.send(request(gateway.key, body(stream=streams)))
            next_record(fake, before + number)
        stream = told.head()
        while b" This" not in told.chunk():
            pass
        process = gateway.terminate()
        rest = told.rest_of_body()
        assert Answer(503, (), rest.rpartition(b"data: ")[2]).code == "shutting_down"
        assert rest.endswith(b"\n\n")
        nothing = silent.answer()
        assert Answer(503, (), nothing.events[-1]).code == "shutting_down"
        refused = whole.answer()
        assert (refused.status, refused.code) == (503, "shutting_down")
        assert exit_code(gateway, process) == 0
    for record in asked(fake)[before:]:
        assert record.client_closed.wait(20), "the upstream is told"
    row = gateway.event(stream.id)
    assert (row["outcome"], row["output_tokens"]) == ("stopped", 3)
    assert row["amount_pico"] == price(row["input_tokens"], 3)
    ids = {row["id"] for row in gateway.events()}
    assert not {nothing.id, refused.id} & ids, "what brought nothing costs nothing"


def test_a_request_that_comes_to_its_end_during_the_grace_is_refused_with_a_hint_to_come_back(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    raw = request(gateway.key)
    before = len(asked(fake))
    with Raw(gateway) as client:
        client.send(raw[:-5])
        assert gateway.status("/healthz") == 200
        process = gateway.terminate()
        eventually(lambda: refuses_connections(gateway), "it takes no new connections")
        client.send(raw[-5:])
        answer = client.answer()
        assert (answer.status, answer.code) == (503, "shutting_down")
        assert answer.header("connection") == "close"
        assert int(answer.header("retry-after") or 0) >= 1
        assert client.is_closed()
        assert exit_code(gateway, process) == 0
    assert len(asked(fake)) == before


def test_what_waits_for_its_record_is_recorded_and_released_before_the_end(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    before = script_chat(fake, *streamed("a", completion=2))
    with Raw(gateway) as streaming, Raw(gateway) as whole:
        with sqlite_locked(gateway):
            streaming.send(request(gateway.key, body(stream=True)))
            stream = streaming.head()
            whole.send(request(gateway.key))
            for record in (next_record(fake, before), next_record(fake, before + 1)):
                assert record.finished.wait(20)
            process = gateway.terminate()
            eventually(lambda: refuses_connections(gateway), "it takes no new connections")
            time.sleep(2 * GRACE_S)  # the lock outlives the grace
        assert b"[DONE]" in streaming.rest_of_body()
        answer = whole.answer()
        assert answer.status == 200
        assert exit_code(gateway, process) == 0
    assert {stream.id, answer.id} <= {row["id"] for row in gateway.events()}


def test_clients_in_the_middle_of_a_request_do_not_keep_it_alive(gateway: Gateway) -> None:
    with contextlib.ExitStack() as clients:
        for part in (b"", b"POST /v1/chat", request(gateway.key)[:-5]):
            clients.enter_context(Raw(gateway)).send(part)
        assert gateway.status("/healthz") == 200
        start = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - start < GRACE_S + 20


@pytest.mark.slow
def test_a_client_that_does_not_read_does_not_keep_it_alive(gateway: Gateway, fake: FakeUpstream) -> None:
    events = [event({**chat_chunk("a"), "padding": "x" * 100_000})] * 100
    before = script_chat(fake, sse_head(), *events, done(), last_chunk())
    with Raw(gateway, receive_buffer=65_536) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        record = next_record(fake, before)
        sent = -1
        while (now := len(record.sent)) != sent:
            sent = now
            time.sleep(0.1)  # until nothing flows any more
        start = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - start < GRACE_S + LAST_BYTES_S + 5
        with pytest.raises((CutError, ConnectionResetError)):
            client.rest_of_body()
    assert gateway.event(answer.id)["outcome"] == "stopped"
