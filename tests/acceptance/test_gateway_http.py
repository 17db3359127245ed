"""HTTP as hostile, odd and old clients speak it: framing, pipelining, limits; nothing but the listed routes passes."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.harness import Gateway, eventually
from tests.acceptance.raw import CHAT, COMPLETIONS, Answer, CutError, Raw, ask, body, request
from tests.acceptance.serving import asked, fake_upstream, gateway_before, next_record, plain, script_chat, streamed
from tests.emulators.upstream import Await, FakeUpstream, Gate, chat_chunk, event, sse_head

MAX_BODY_MB = 1


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    """One scripted upstream for the module."""
    with fake_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def shared(fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for the module, with a small limit on bodies."""
    home: Path = tmp_path_factory.mktemp("gateway")
    with gateway_before(fake, home, settings={"max_body_mb": MAX_BODY_MB}) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The module's gateway; a traceback in its log fails the test, and it has to serve after each."""
    yield shared
    shared.assert_no_failure()
    assert ask(shared, request(shared.key)).status == 200, "it still serves"


UNKNOWN = (
    "/completion",
    "/slots",
    "/props",
    "/metrics/",
    "/v1",
    "/v1/",
    "/v1/stream",
    "/v1/chat/completions/",
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/chat/completions%2f",
    "/v1/chat%2fcompletions",
    "/v1/chat/completion%73",
    "/%761/chat/completions",
    "/v1/./chat/completions",
    "/x/../v1/chat/completions",
    "/%2e%2e/v1/chat/completions",
    "/V1/chat/completions",
    "/v1/chat/completions;x=1",
    "/v1/chat/completions/input_tokens",
    "http://127.0.0.1/v1/chat/completions",
    "http://elsewhere/completion",
    "/v1/embeddings/../chat/completions",
)


@pytest.mark.parametrize("target", UNKNOWN)
def test_an_unknown_path_is_404_and_never_reaches_the_upstream(
    gateway: Gateway, fake: FakeUpstream, target: str
) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, path=target))
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.id
    assert len(asked(fake)) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_another_method_on_a_metered_path_never_reaches_the_upstream(
    gateway: Gateway, fake: FakeUpstream, method: str
) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, method=method))
    assert (answer.status, answer.code) == (404, "not_found")
    assert len(asked(fake)) == before


@pytest.mark.parametrize(("path", "allowed"), [("/v1/models", "GET"), ("/healthz", "GET"), ("/stripe/webhook", "POST")])
def test_another_method_on_a_path_of_our_own_is_405_and_names_what_is_allowed(
    gateway: Gateway, path: str, allowed: str
) -> None:
    """RFC 9110 §15.5.6 wants the field. On metered paths it is 404, as on the model servers themselves."""
    answer = ask(gateway, request(gateway.key, method="PUT", path=path))
    assert (answer.status, answer.code, answer.header("allow")) == (405, "method_not_allowed", allowed)


def test_a_query_string_does_not_hide_a_metered_path(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, path=f"{CHAT}?api-version=2026-01-01"))
    assert answer.status == 200
    assert next_record(fake, before).path == CHAT
    assert gateway.event(answer.id)["amount_pico"] > 0


SMUGGLING = {
    "length and chunked": "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    "two equal lengths": "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": "Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": "Content-Length: +2\r\n\r\n{}",
    "a negative length": "Content-Length: -2\r\n\r\n{}",
    "a hexadecimal length": "Content-Length: 0x2\r\n\r\n{}",
    "a length beyond 64 bits": "Content-Length: 99999999999999999999999\r\n\r\n{}",
    "an unknown coding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked is not the last coding": "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a space before the colon": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": "X-A: 1\r\n Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "a bare line feed": "X-A: 1\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "a bare carriage return": "X-A: 1\rX-B: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a zero byte in a value": "X-A: 1\x002\r\nContent-Length: 2\r\n\r\n{}",
    "a chunk size that is no number": "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a sign": "Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_a_request_whose_end_is_ambiguous_is_refused_and_the_connection_closed(
    gateway: Gateway, fake: FakeUpstream, lines: str
) -> None:
    before = len(asked(fake))
    smuggled = request(gateway.key, path="/v1/chat/completions")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {gateway.key.header}\r\n"
    with Raw(gateway) as client:
        client.send(head.encode() + lines.encode("latin-1") + smuggled)
        answer = client.answer()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert client.is_closed()
    assert len(asked(fake)) == before


@pytest.mark.parametrize(
    "raw",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n"],
    ids=["tls", "http2", "words"],
)
def test_what_is_not_http_gets_400_in_json_and_is_closed(gateway: Gateway, raw: bytes) -> None:
    with Raw(gateway) as client:
        client.send(raw)
        answer = client.answer()
        assert (answer.status, answer.code, answer.header("connection")) == (400, "invalid_request", "close")
        assert client.is_closed()


@pytest.mark.parametrize("target", ["OPTIONS * HTTP/1.1", "CONNECT example.com:443 HTTP/1.1", "GET example HTTP/1.1"])
def test_targets_that_are_no_path_are_refused(gateway: Gateway, fake: FakeUpstream, target: str) -> None:
    before = len(asked(fake))
    with Raw(gateway) as client:
        client.send(f"{target}\r\nHost: x\r\nAuthorization: {gateway.key.header}\r\n\r\n".encode())
        assert client.answer().status in (400, 404)
    assert len(asked(fake)) == before


def chunked(content: bytes, *, size: int, trailer: bytes = b"") -> bytes:
    """A chunked body in chunks of `size` bytes."""
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    return framed + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_arrives_whole(gateway: Gateway, fake: FakeUpstream, size: int) -> None:
    before = len(asked(fake))
    head = request(gateway.key, b"", headers={"Content-Length": "", "Transfer-Encoding": "chunked"})
    content = b'{"model":"qwen3.5-0.8b","messages":[{"role":"user","content":"hi"}]}'
    answer = ask(gateway, head + chunked(content, size=size))
    assert answer.status == 200
    record = next_record(fake, before)
    assert record.body == content
    assert record.header("transfer-encoding") is None


def test_trailers_do_not_become_headers(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    head = request(gateway.key, b"", headers={"Content-Length": "", "Transfer-Encoding": "chunked"})
    trailer = b"X-Smuggled: 1\r\nX-Api-Key: wk_other\r\n"
    content = b'{"model":"qwen3.5-0.8b","messages":[]}'
    with Raw(gateway) as client:
        client.send(head + chunked(content, size=9)[:-2])
        client.send(trailer + b"\r\n")
        assert client.answer().status == 200
        assert client.ask(request(gateway.key)).status == 200
    assert next_record(fake, before).header("x-smuggled") is None


def test_pipelined_requests_of_both_planes_are_answered_in_order(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    script_chat(fake, Await(gate), plain(completion=1))
    fake.script(plain(completion=2), path=COMPLETIONS)
    script_chat(fake, *streamed("a", completion=3))
    with Raw(gateway) as client:
        client.send(
            request(gateway.key)
            + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            + request(gateway.key, {"model": "qwen3.5-0.8b", "prompt": "hi"}, path=COMPLETIONS)
            + request(None)
            + request(gateway.key, body(stream=True))
            + b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer nobody\r\n\r\n"
            + request(gateway.key, b"[]")
        )
        gate.open()
        first = client.answer()
        health = client.answer()
        second = client.answer()
        assert first.json["usage"]["completion_tokens"] == 1
        assert health.json == {"status": "ok"}
        assert second.json["usage"]["completion_tokens"] == 2
        assert client.answer().code == "invalid_api_key"
        assert client.answer().events[-1] == b"[DONE]"
        assert client.answer().status == 401
        assert client.answer().code == "invalid_request"


def test_many_refused_requests_in_one_packet_are_all_answered(gateway: Gateway, fake: FakeUpstream) -> None:
    """Each answer starts the next request: by recursion, the interpreter's stack would end it."""
    count = 1_500
    gate = Gate()
    script_chat(fake, Await(gate), plain())
    with Raw(gateway) as client:
        client.send(request(gateway.key) + request(gateway.key, b"[]") * count)
        gate.open()
        assert client.answer().status == 200
        for _ in range(count):
            answer = client.answer()
            assert (answer.status, answer.code) == (400, "invalid_request")


def test_many_control_plane_requests_in_one_packet_are_all_answered(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        client.send((b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + request(gateway.key, b"[]")) * 300)
        assert [client.answer().status for _ in range(600)] == [200, 400] * 300


def test_an_old_client_without_chunks_gets_streams_that_end_with_the_connection(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    script_chat(fake, *streamed("Hel", "lo", completion=5))
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True), version="1.0"))
        answer = client.answer()
    assert answer.header("connection") == "close"
    assert answer.header("transfer-encoding") is None
    assert answer.events[-1] == b"[DONE]"
    assert gateway.event(answer.id)["output_tokens"] == 5


def test_an_old_client_gets_a_plain_answer_and_the_connection_closes(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        answer = client.ask(request(gateway.key, version="1.0"))
        assert answer.json["choices"][0]["message"]["content"] == "hello"
        assert client.is_closed()


def test_a_client_that_asks_to_close_gets_its_answer_and_a_close(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        answer = client.ask(request(gateway.key, headers={"Connection": "close"}))
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert client.is_closed()


def test_nothing_is_done_of_what_follows_a_request_to_close(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    with Raw(gateway) as client:
        client.send(request(gateway.key, headers={"Connection": "close"}) + request(gateway.key))
        assert client.answer().status == 200
        assert client.is_closed()
    with Raw(gateway) as client:
        client.send(request(gateway.key, version="1.0") + request(gateway.key))
        assert client.answer().status == 200
    assert ask(gateway, request(gateway.key)).status == 200
    assert len(asked(fake)) == before + 3


def test_expect_100_continue_is_told_to_go_on_before_its_body(gateway: Gateway) -> None:
    whole = request(gateway.key, headers={"Expect": "100-continue"})
    head, _, content = whole.partition(b"\r\n\r\n")
    with Raw(gateway) as client:
        client.send(head + b"\r\n\r\n")
        assert client.head().status == 100
        client.send(content)
        assert client.answer().status == 200


def test_a_pipelined_expect_100_continue_is_told_to_go_on_in_its_turn(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    script_chat(fake, Await(gate), plain())
    whole = request(gateway.key, headers={"Expect": "100-continue"})
    head, _, content = whole.partition(b"\r\n\r\n")
    with Raw(gateway) as client:
        client.send(request(gateway.key) + head + b"\r\n\r\n")
        assert gate.reached.wait(20)
        gate.open()
        assert client.answer().status == 200
        assert client.head().status == 100
        client.send(content)
        assert client.answer().status == 200


@pytest.mark.parametrize(
    ("secret", "length", "code"),
    [
        ("wk_unknown", "20", "invalid_api_key"),
        ("nonsense", "20", "invalid_api_key"),
        ("", str(2**21), "request_too_large"),
    ],
)
def test_expect_100_continue_is_refused_without_the_body_where_the_head_decides(
    gateway: Gateway, secret: str, length: str, code: str
) -> None:
    headers = {"Expect": "100-continue", "Content-Length": length, "Authorization": f"Bearer {secret}"}
    if not secret:
        headers["Authorization"] = gateway.key.header
    with Raw(gateway) as client:
        client.send(request(None, b"", headers=headers))
        assert client.answer().code == code


def too_large(client: Raw, head: bytes, content: bytes) -> Answer:
    """Send as a blocking client does: the whole body first, and only then listen."""
    client.send(head)
    client.send(content)
    return client.answer()


def test_a_body_beyond_the_limit_is_413_even_for_a_client_that_only_listens_when_it_has_sent_all(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    """A gateway that closes with unread bytes resets the connection, and the client never sees the reason."""
    before = len(asked(fake))
    content = b" " * (16 * 2**20)
    for _ in range(3):
        with Raw(gateway) as client:
            head = request(gateway.key, b"", headers={"Content-Length": str(len(content))})
            answer = too_large(client, head, content)
            assert (answer.status, answer.code) == (413, "request_too_large")
            assert answer.header("connection") == "close"
    assert len(asked(fake)) == before


def test_a_chunked_body_beyond_the_limit_is_413(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    head = request(gateway.key, b"", headers={"Content-Length": "", "Transfer-Encoding": "chunked"})
    with Raw(gateway) as client:
        answer = too_large(client, head, chunked(b" " * (2**20 + 1), size=65_536))
        assert (answer.status, answer.code) == (413, "request_too_large")
    assert len(asked(fake)) == before


def test_a_pipelined_body_beyond_the_limit_is_413_too(gateway: Gateway, fake: FakeUpstream) -> None:
    gate = Gate()
    script_chat(fake, Await(gate), plain())
    content = b" " * (2**20 + 1)
    with Raw(gateway) as client:
        client.send(request(gateway.key) + request(gateway.key, b"", headers={"Content-Length": str(len(content))}))
        assert gate.reached.wait(20)
        gate.open()
        assert client.answer().status == 200
        client.send(content)
        assert client.answer().code == "request_too_large"


def test_a_body_at_the_limit_passes(gateway: Gateway) -> None:
    content = b'{"model":"qwen3.5-0.8b","messages":[]}'
    assert ask(gateway, request(gateway.key, content.ljust(2**20))).status == 200


def test_a_bad_key_is_told_so_even_while_the_client_sends_its_body(gateway: Gateway) -> None:
    content = b" " * (8 * 2**20)
    head = request(None, b"", headers={"Content-Length": str(len(content))})
    with Raw(gateway) as client:
        assert too_large(client, head, content).code == "invalid_api_key"


def test_a_client_that_wants_http2_is_served_on_http1_and_again(gateway: Gateway) -> None:
    """Java's HttpClient asks so on its first request to any plain-text server (RFC 7540 §3.2)."""
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ"}
    with Raw(gateway) as client:
        for _ in range(2):
            assert client.ask(request(gateway.key, headers=upgrade)).status == 200
        assert client.ask(request(gateway.key)).status == 200
        head, _, content = request(gateway.key, headers=upgrade).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n" + content[:5])
        client.send(content[5:])
        assert client.answer().status == 200


ENDLESS = {
    "one header": b"POST /v1/chat/completions HTTP/1.1\r\nX-A: ",
    "many headers": b"POST /v1/chat/completions HTTP/1.1\r\n",
    "the target": b"POST /",
    "a header of the control plane": b"GET /healthz HTTP/1.1\r\nX-A: ",
    "a trailer": b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: ",
    "a chunk extension": b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=",
}


@pytest.mark.parametrize("start", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_head_without_end_is_refused_and_costs_no_memory(gateway: Gateway, start: bytes) -> None:
    before = gateway.rss_kib
    filler = b"x: y\r\n" * 10_000 if start.endswith(b"1.1\r\n") else b"a" * 60_000
    with Raw(gateway) as client:
        key = f"Authorization: {gateway.key.header}\r\n".encode()
        client.send(start.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + key))
        for _ in range(1_000):
            client.send(filler)
        answer = client.answer()
        assert (answer.status, answer.code, answer.header("connection")) == (400, "invalid_request", "close")
    assert gateway.rss_kib - before < 20_000


@pytest.mark.parametrize("name", ["x-long", "cookie"])
def test_a_header_within_the_limit_passes(gateway: Gateway, name: str) -> None:
    assert ask(gateway, request(gateway.key, headers={name: "a" * 60_000})).status == 200


def test_a_header_beyond_the_limit_is_refused_in_json(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    answer = ask(gateway, request(gateway.key, headers={"x-long": "a" * 70_000}))
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert len(asked(fake)) == before


def test_garbage_behind_a_running_stream_ends_it_and_writes_nothing_into_it(
    gateway: Gateway, fake: FakeUpstream
) -> None:
    before = script_chat(fake, sse_head(), event(chat_chunk("Hello")), Await(Gate()))
    with Raw(gateway) as client:
        client.send(request(gateway.key, body(stream=True)))
        answer = client.head()
        assert b"Hello" in client.chunk()
        client.send(b"\x00\x01garbage\r\n\r\n")
        assert client.rest() == b""
    record = next_record(fake, before)
    assert record.client_closed.wait(20)
    event_row = gateway.event(answer.id)
    assert (event_row["outcome"], event_row["output_tokens"]) == ("client_closed", 1)


def test_a_webhook_body_without_end_is_refused_and_costs_no_memory(gateway: Gateway) -> None:
    before = gateway.rss_kib
    with Raw(gateway) as client:
        client.send(request(None, b"", path="/stripe/webhook", headers={"Content-Length": str(2**30)}))
        for _ in range(1_000):
            client.send(b"x" * 60_000)
        assert client.answer().code == "request_too_large"
    assert gateway.rss_kib - before < 20_000


def test_the_clients_own_ids_and_weir_headers_are_ignored(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    headers = {"X-Request-Id": "mine", "X-Weir-Amount": "0", "X-Weir-Customer": "other", "Idempotency-Key": "again"}
    answers = [ask(gateway, request(gateway.key, headers=headers)) for _ in range(2)]
    assert len({answer.id for answer in answers} - {"mine"}) == 2
    record = next_record(fake, before)
    assert record.header("x-request-id") == answers[0].id
    assert not [name for name, _ in record.headers if name.lower().startswith("x-weir")]
    assert [gateway.event(answer.id)["customer_id"] for answer in answers]


def test_hop_by_hop_headers_and_credentials_do_not_pass_upstream(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    dropped = {
        "Connection": "keep-alive, X-Named",
        "Keep-Alive": "timeout=5",
        "Proxy-Authorization": "Basic secret",
        "Proxy-Connection": "keep-alive",
        "TE": "trailers",
        "Trailer": "X-T",
        "X-Named": "1",
        "X-Api-Key": "wk_other",
        "X-Conversation-Id": "c1",
        "Accept-Encoding": "gzip, br",
        "Content-Encoding": "identity",
    }
    passed = {"Accept": "application/json", "User-Agent": "attack/1", "X-Custom": "väl", "OpenAI-Beta": "a=b"}
    answer = ask(gateway, request(gateway.key, headers={**dropped, **passed}))
    assert answer.status == 200
    record = next_record(fake, before)
    names = [name.lower() for name, _ in record.headers]
    assert len(names) == len(set(names)), "each field once"
    assert not {name.lower() for name in dropped} & (set(names) - {"accept-encoding"})
    assert record.header("accept-encoding") == "identity"
    assert {name: record.header(name) for name in passed} == passed
    assert record.header("authorization") is None
    assert gateway.key.secret.encode() not in record.raw


def test_two_connection_headers_both_count(gateway: Gateway, fake: FakeUpstream) -> None:
    before = len(asked(fake))
    raw = request(gateway.key, headers={"Connection": "x-one\r\nConnection: x-two,\tx-three", "X-One": "1"})
    raw = raw.replace(b"X-One: 1\r\n", b"X-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n")
    assert ask(gateway, raw).status == 200
    names = {name.lower() for name, _ in next_record(fake, before).headers}
    assert not names & {"x-one", "x-two", "x-three"}


def test_a_key_in_x_api_key_is_as_good(gateway: Gateway) -> None:
    assert ask(gateway, request(None, headers={"X-Api-Key": gateway.key.secret})).status == 200


def test_a_request_cut_off_in_its_body_leaves_nothing(gateway: Gateway, fake: FakeUpstream) -> None:
    before, events = len(asked(fake)), len(gateway.events())
    for hang_up in (Raw.close, Raw.reset):
        client = Raw(gateway)
        client.send(request(gateway.key)[:-10])
        hang_up(client)
    eventually(lambda: ask(gateway, request(gateway.key)).status == 200, "it serves")
    assert len(asked(fake)) == before + 1
    assert len(gateway.events()) == events + 1


def test_a_client_that_half_closes_is_taken_for_gone_as_on_llamacpp(gateway: Gateway, fake: FakeUpstream) -> None:
    before = script_chat(fake, Await(Gate()))
    with Raw(gateway) as client:
        client.send(request(gateway.key))
        record = next_record(fake, before)
        client.half_close()
        assert record.client_closed.wait(20)
        with pytest.raises((CutError, ConnectionResetError)):
            client.answer()
    request_id = record.header("x-request-id")
    assert request_id is not None
    assert gateway.event(request_id)["outcome"] == "client_closed"


def test_a_connection_serves_many_requests(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        answers = [client.ask(request(gateway.key)) for _ in range(50)]
    assert len({answer.id for answer in answers}) == 50
    assert {answer.status for answer in answers} == {200}


def test_bytes_that_come_one_by_one_are_a_request_as_well(gateway: Gateway) -> None:
    with Raw(gateway) as client:
        for byte in request(gateway.key):
            client.send(bytes([byte]))
        assert client.answer().status == 200


def test_a_refused_connection_is_not_kept_by_clients_that_never_close(gateway: Gateway) -> None:
    """After a refusal that closes, the gateway listens on for a while, but not for ever."""
    with Raw(gateway) as client:
        client.send(request(None, b"", headers={"Content-Length": "1000"}))
        assert client.answer().code == "invalid_api_key"
        client._socket.settimeout(15)
        assert client.is_closed()


def test_ports_are_not_leaked_by_clients_that_come_and_go(gateway: Gateway) -> None:
    def open_sockets() -> int:
        return sum(1 for _ in Path(f"/proc/{gateway.pid}/fd").iterdir())

    ask(gateway, request(gateway.key))
    before = open_sockets()
    for _ in range(100):
        socket.create_connection(("127.0.0.1", gateway.port)).close()
    eventually(lambda: open_sockets() <= before + 2, "sockets are closed")


@pytest.mark.slow
def test_a_connection_on_which_nothing_comes_is_closed(gateway: Gateway) -> None:
    """Idle ones after 75 s, and those in the middle of a request after 60 s."""
    starts = (b"", b"POST /v1/chat", request(gateway.key)[:-3], b"GET /healthz HTTP/1.1\r\n")
    with ExitStack() as clients:
        connections = [clients.enter_context(Raw(gateway)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.send(start)
        served = clients.enter_context(Raw(gateway))
        assert served.ask(request(gateway.key)).status == 200
        for connection in (*connections, served):
            connection._socket.settimeout(90)
            assert connection.is_closed()
