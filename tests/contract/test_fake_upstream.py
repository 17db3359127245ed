"""The fake upstream does what its script says, to the byte, and says what the client did."""

import contextlib
import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from openai import APIError, OpenAI

from tests import captures
from tests.emulators.upstream import (
    Await,
    Close,
    Drip,
    FakeUpstream,
    Gate,
    Reset,
    Send,
    Silence,
    chat_chunk,
    chunk,
    event,
    json_answer,
    last_chunk,
    ndjson_head,
    ndjson_line,
    sse_head,
    stream,
    usage_chunk,
)
from tests.support.certificates import Authority, server_context

LIMIT_S = 60
CHAT = "/v1/chat/completions"
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    """A fake without a script."""
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A client that pools its connections."""
    with httpx.Client(trust_env=False, timeout=LIMIT_S) as client:
        yield client


def connect(upstream: FakeUpstream) -> socket.socket:
    """A bare connection, for what no HTTP library does."""
    return socket.create_connection(("127.0.0.1", upstream.port), timeout=LIMIT_S)


def read_all(client: socket.socket) -> bytes:
    """Everything until the server hangs up."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def sdk(upstream: FakeUpstream) -> OpenAI:
    """The official client, without retries."""
    return OpenAI(base_url=f"{upstream.url}/v1", api_key="unused", max_retries=0)


def test_nothing_leaves_before_the_gate_is_opened(upstream: FakeUpstream) -> None:
    """The test decides the moment: first half, a check, second half."""
    gate = Gate()
    upstream.script(Send(b"first"), Await(gate), Send(b"second"), Close())
    with connect(upstream) as client:
        client.sendall(ASK)
        assert gate.reached.wait(LIMIT_S)
        (record,) = upstream.requests
        assert record.sent == b"first"
        assert not record.finished.is_set()
        gate.open()
        assert read_all(client) == b"firstsecond"
        assert record.finished.wait(LIMIT_S)


def test_a_gate_that_is_open_holds_nobody(upstream: FakeUpstream) -> None:
    """One gate may serve many requests, those that come later too."""
    gate = Gate()
    gate.open()
    upstream.script(Await(gate), Send(b"x"), Close(), times=2)
    for _ in range(2):
        with connect(upstream) as client:
            client.sendall(ASK)
            assert read_all(client) == b"x"


def test_a_reset_comes_after_what_was_delivered(upstream: FakeUpstream, http: httpx.Client) -> None:
    """As when the server's process dies in the middle of a stream."""
    gate = Gate()
    upstream.script(sse_head(), event(chat_chunk("Hel")), Await(gate), Reset())
    received = b""
    with http.stream("POST", upstream.url + CHAT) as answer, pytest.raises(httpx.ReadError):
        for part in answer.iter_raw():
            received += part
            gate.open()
    assert b'"content":"Hel"' in received


def test_a_stream_may_end_without_its_end_mark(upstream: FakeUpstream, http: httpx.Client) -> None:
    """A plain FIN in the middle: a client must not take it for the end."""
    upstream.script(sse_head(), event(chat_chunk("Hel")), Close())
    with pytest.raises(httpx.RemoteProtocolError):
        http.post(upstream.url + CHAT)


def test_a_server_that_hangs_learns_when_the_client_leaves(upstream: FakeUpstream) -> None:
    """No byte is sent; the record tells the leaving, and that nothing was finished."""
    upstream.script(Silence())
    with connect(upstream) as client:
        client.sendall(ASK)
        (record,) = upstream.wait_for_requests(1)
        assert not record.client_closed.is_set()
    assert record.client_closed.wait(LIMIT_S)
    upstream.wait_for_open_connections(0)
    assert record.sent == b""
    assert not record.finished.is_set()


def test_a_client_that_leaves_midway_stops_the_script(upstream: FakeUpstream) -> None:
    """Waiting at a gate is no reason not to notice."""
    gate = Gate()
    upstream.script(sse_head(), event("one"), Await(gate), event("two"))
    with connect(upstream) as client:
        client.sendall(ASK)
        assert gate.reached.wait(LIMIT_S)
    (record,) = upstream.requests
    assert record.client_closed.wait(LIMIT_S)
    upstream.wait_for_open_connections(0)
    gate.open()
    assert record.sent == sse_head().data + event("one").data
    assert record.left_early


def test_a_half_close_counts_as_leaving(upstream: FakeUpstream) -> None:
    """llama.cpp and vLLM stop generating when the client shuts its sending half."""
    gate = Gate()
    upstream.script(Await(gate), Send(b"never"))
    with connect(upstream) as client:
        client.sendall(ASK)
        assert gate.reached.wait(LIMIT_S)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    assert upstream.requests[0].client_closed.is_set()


def test_a_slow_server_sends_byte_by_byte(upstream: FakeUpstream) -> None:
    """Each byte is its own packet, so a reader gets many parts."""
    body = captures.load("llama-server_tiny-qwen35/chat_nonstream").raw[:200]
    upstream.script(Drip(body), Close())
    with connect(upstream) as client:
        client.sendall(ASK)
        parts = list(iter(lambda: client.recv(65_536), b""))
    assert b"".join(parts) == body
    assert len(parts) > 1


def test_a_client_that_does_not_read_is_felt(upstream: FakeUpstream) -> None:
    """The server stops when the kernel's buffers are full: `sent` measures what a client lets through."""
    total = 64 * 1024 * 1024
    gate = Gate()
    upstream.script(Send(b"x" * total), Close(), path="/big")
    upstream.script(Await(gate), Close(), path="/other")
    with connect(upstream) as client, connect(upstream) as other:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        upstream.wait_for_requests(1)
        other.sendall(b"GET /other HTTP/1.1\r\n\r\n")
        assert gate.reached.wait(LIMIT_S), "the server has time for others meanwhile"
        assert len(upstream.requests[0].sent) < total // 4
        assert len(read_all(client)) == total
    assert len(upstream.requests[0].sent) == total


def test_requests_are_answered_in_order_and_by_path(upstream: FakeUpstream, http: httpx.Client) -> None:
    """A script for a path leaves the others alone; a standing answer comes when no script is left."""
    upstream.always("/health", json_answer({"status": "ok"}))
    upstream.script(json_answer({"n": 1}), path=CHAT)
    upstream.script(json_answer({"n": 2}), path=CHAT, times=2)
    upstream.script(json_answer({"status": "loading"}, status=503), path="/health")
    assert upstream.scripts_left == 4
    health = [http.get(upstream.url + "/health").status_code for _ in range(3)]
    chats = [http.post(upstream.url + CHAT).json()["n"] for _ in range(3)]
    assert health == [503, 200, 200]
    assert chats == [1, 2, 2]
    assert upstream.scripts_left == 0


def test_a_request_without_a_script_is_refused_and_kept(upstream: FakeUpstream, http: httpx.Client) -> None:
    """A surprise is visible: to the client as 501, to the test in `unscripted`."""
    answer = http.get(upstream.url + "/props")
    assert answer.status_code == 501
    assert "GET /props" in answer.json()["error"]["message"]
    assert [record.path for record in upstream.unscripted] == ["/props"]


def test_connections_are_kept_alive_and_counted(upstream: FakeUpstream, http: httpx.Client) -> None:
    """Two requests on one connection; a server that hangs up costs a second."""
    upstream.script(json_answer({}), times=2)
    upstream.script(json_answer({}), Close())
    upstream.script(json_answer({}))
    for _ in range(4):
        http.post(upstream.url + CHAT)
        if len(upstream.requests) == 3:
            upstream.wait_for_open_connections(0)
    assert [record.connection for record in upstream.requests] == [1, 1, 1, 2]
    assert upstream.connections == 2
    assert upstream.open_connections == 1


def test_a_request_is_recorded_to_the_byte(upstream: FakeUpstream) -> None:
    """Head as sent, names in their case, body decoded; the raw bytes as well."""
    upstream.script(json_answer({}), Close())
    raw = b"POST /v1/x?q=1 HTTP/1.1\r\nHost: x\r\nX-Odd:  a b \r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b'4\r\n{"a"\r\n3;ext=1\r\n:1}\r\n0\r\n\r\n'
    with connect(upstream) as client:
        client.sendall(raw)
        read_all(client)
    (record,) = upstream.requests
    assert (record.method, record.path) == ("POST", "/v1/x?q=1")
    assert ("X-Odd", "a b") in record.headers
    assert record.header("x-odd") == "a b"
    assert record.header("missing") is None
    assert record.body == b'{"a":1}'
    assert record.json() == {"a": 1}
    assert record.raw == raw


def test_a_stream_is_read_by_the_official_sdk(upstream: FakeUpstream) -> None:
    """The ready-made shapes are well formed: deltas, usage, [DONE]."""
    upstream.script(
        *stream(
            chat_chunk({"role": "assistant", "content": None}),
            chat_chunk("Hel"),
            chat_chunk("lo"),
            chat_chunk({}, finish="stop"),
            usage_chunk(13, 3, cached=9),
        )
    )
    with sdk(upstream) as client:
        chunks = list(client.chat.completions.create(model="any", messages=[], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (13, 3, 16)


def test_an_error_event_inside_a_good_answer_reaches_the_client(upstream: FakeUpstream) -> None:
    """llama.cpp reports a late failure so."""
    upstream.script(
        sse_head(),
        event(chat_chunk("Hel")),
        event({"error": {"code": 500, "message": "out of slots", "type": "server_error"}}),
        last_chunk(),
    )
    with sdk(upstream) as client, pytest.raises(APIError, match="out of slots"):
        list(client.chat.completions.create(model="any", messages=[], stream=True))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_events_may_end_lines_as_the_standard_allows(upstream: FakeUpstream, line_end: str) -> None:
    """CRLF, LF and CR are all legal in an event stream, and [DONE] may be missing (transformers serve)."""
    upstream.script(
        sse_head(chunked=False),
        event(chat_chunk("Hi"), line_end=line_end, chunked=False),
        event(chat_chunk({}, finish="stop"), line_end=line_end, chunked=False),
        Close(),
    )
    with sdk(upstream) as client:
        chunks = list(client.chat.completions.create(model="any", messages=[], stream=True))
    assert [c.choices[0].delta.content for c in chunks] == ["Hi", None]


def test_a_named_event_has_its_name_line() -> None:
    """As on /v1/messages and /v1/responses."""
    assert event({"a": 1}, name="ping", chunked=False).data == b'event: ping\ndata: {"a":1}\n\n'
    assert chunk(b"abc").data == b"3\r\nabc\r\n"


def test_a_native_ollama_stream_is_one_object_a_line(upstream: FakeUpstream, http: httpx.Client) -> None:
    """The client reads objects, whatever the chunks."""
    upstream.script(ndjson_head(), ndjson_line({"done": False}), ndjson_line({"done": True}), last_chunk())
    answer = http.post(upstream.url + "/api/chat")
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.content == b'{"done":false}\n{"done":true}\n'


def test_a_client_that_closes_after_its_answer_did_not_leave_early(upstream: FakeUpstream) -> None:
    """Both are noted: the answer was finished, then the connection was closed."""
    upstream.script(json_answer({}))
    with connect(upstream) as client:
        client.sendall(ASK)
        assert client.recv(65_536)
        assert upstream.requests[0].finished.wait(LIMIT_S)
    assert upstream.requests[0].client_closed.wait(LIMIT_S)
    assert not upstream.requests[0].left_early


def test_a_body_may_be_compressed(upstream: FakeUpstream, http: httpx.Client) -> None:
    """Some proxies in front of a server do so though not asked."""
    upstream.script(json_answer({"text": "x" * 1000}, compressed=True))
    with http.stream("POST", upstream.url + CHAT) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert raw.startswith(b"\x1f\x8b")
    assert len(raw) < 200


def test_a_length_may_lie(upstream: FakeUpstream, http: httpx.Client) -> None:
    """The answer ends before its Content-Length."""
    upstream.script(json_answer({}, length=100), Close())
    with pytest.raises(httpx.RemoteProtocolError):
        http.post(upstream.url + CHAT)


def test_a_capture_can_be_cut_anywhere(upstream: FakeUpstream, http: httpx.Client) -> None:
    """Head and three chunks of a recorded stream, then nothing for as long as the test likes."""
    gate = Gate()
    name = "llama-server_tiny-qwen35/chat_stream_include_usage"
    upstream.replay(name, pieces=4, ending=Await(gate))
    with http.stream("POST", upstream.url + CHAT):
        assert gate.reached.wait(LIMIT_S)
        assert upstream.requests[0].sent == b"".join(captures.load(name).pieces[:4])
    upstream.wait_for_open_connections(0)
    assert upstream.requests[0].left_early


def test_a_hundred_clients_are_served_at_once(upstream: FakeUpstream) -> None:
    """All wait at one gate before any is answered."""
    gate = Gate()
    upstream.script(Await(gate), json_answer({"ok": True}), Close(), times=100)

    def ask(_: int) -> bytes:
        with connect(upstream) as client:
            client.sendall(ASK)
            return read_all(client)

    with ThreadPoolExecutor(100) as pool:
        answers = pool.map(ask, range(100))
        upstream.wait_for_requests(100)
        assert upstream.open_connections == 100
        gate.open()
        assert set(answers) == {json_answer({"ok": True}).data}


def test_a_server_that_went_away_can_come_back_on_its_port(http: httpx.Client) -> None:
    """Outages: refused, then served again."""
    with FakeUpstream() as first:
        port = first.port
    with pytest.raises(httpx.ConnectError):
        http.get(first.url)
    with FakeUpstream(port=port) as second:
        second.script(json_answer({}))
        assert http.get(second.url).status_code == 200


def test_leaving_the_fake_ends_clients_that_still_wait() -> None:
    """No test hangs on a gate that was never opened, and the cut is not mistaken for the client's leaving."""
    gate = Gate()
    with FakeUpstream() as fake:
        fake.script(Await(gate))
        client = connect(fake)
        client.sendall(ASK)
        assert gate.reached.wait(LIMIT_S)
    with client:
        assert client.recv(1) == b""
    gate.open()
    assert not fake.requests[0].client_closed.is_set()
    assert "fake-upstream" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("is_tls", [False, True])
def test_clients_that_come_while_the_server_ends_leave_no_socket_behind(tmp_path: Path, *, is_tls: bool) -> None:
    """A socket that nobody closes is a warning, and so fails whichever test runs when it is collected."""
    names = Authority.make(tmp_path / "authority").sign("server", "IP:127.0.0.1") if is_tls else None
    context = None if names is None else server_context(names)
    for _ in range(20):
        with FakeUpstream(tls=context) as fake, contextlib.ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(connect(fake))
            clients = clients.pop_all()
        with clients:
            pass
    gc.collect()  # what is warned of in a finalizer pytest gives to this test


def test_a_request_that_is_not_http_is_reported() -> None:
    """A gateway that writes nonsense fails the test that made it do so."""
    with (
        pytest.raises(AssertionError, match="could not serve"),
        FakeUpstream() as fake,
        connect(fake) as client,
    ):
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(1) == b""
