"""What passes between client and upstream, and what must not."""

import httptools
import pytest

from proxy.relay.headers import (
    Headers,
    as_json,
    credential,
    is_event_stream,
    response_head,
    status_line,
    upstream_head,
)

FIXED = b"host: up\r\nauthorization: Bearer upstream-key\r\n"
OWN = [
    b"host: up",
    b"authorization: Bearer upstream-key",
    b"content-type: application/json",
    b"accept-encoding: identity",
    b"x-request-id: r1",
    b"content-length: 5",
]


def to_upstream(client: Headers) -> list[bytes]:
    """The lines that the upstream gets beside Weir's own."""
    start, *lines, empty, end = upstream_head(b"/v1/x", FIXED, b"r1", client, 5).split(b"\r\n")
    assert (start, empty, end) == (b"POST /v1/x HTTP/1.1", b"", b"")
    assert lines[: len(OWN)] == OWN
    return lines[len(OWN) :]


def to_client(upstream: Headers, added: bytes = b"x-request-id: r1\r\n") -> list[bytes]:
    """The lines that the client gets beside those added."""
    start, *lines, last, empty, end = response_head(200, upstream, added).split(b"\r\n")
    assert (start, last, empty, end) == (b"HTTP/1.1 200 OK", b"x-request-id: r1", b"", b"")
    return lines


def test_other_fields_pass_both_ways_in_their_order_and_repeated() -> None:
    """A gateway that nobody notices."""
    fields = [
        (b"accept", b"*/*"),
        (b"user-agent", b"x"),
        (b"idempotency-key", b"k"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"traceparent", b""),
    ]
    lines = [b"%b: %b" % field for field in fields]
    assert to_upstream(fields) == lines
    assert to_client(fields) == lines


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ],
)
def test_hop_by_hop_fields_stay_on_their_hop(name: bytes) -> None:
    """RFC 9110, section 7.6.1."""
    assert to_upstream([(name, b"x")]) == []
    assert to_client([(name, b"x")]) == []


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-a"],
        [b"X-A"],
        [b"close, x-a"],
        [b"keep-alive,x-a ,\tX-B"],
        [b"close", b"x-a"],
        [b"x-b", b"x-a"],
        [b"x-a", b"x-b"],
        [b"\tx-a\t"],
        [b",,x-a,"],
    ],
)
def test_fields_that_connection_names_stay_on_their_hop(connection: list[bytes]) -> None:
    """Several lines are one list; blanks and tabs mean nothing; case neither."""
    headers = [(b"x-a", b"1"), *((b"connection", value) for value in connection), (b"accept", b"x")]
    assert to_upstream(headers) == [b"accept: x"]
    assert to_client(headers) == [b"accept: x"]


def test_a_connection_field_can_not_take_weirs_own_lines_away() -> None:
    """Naming them drops the client's at most."""
    named = b"content-length, content-type, host, authorization, x-request-id, accept-encoding"
    assert to_upstream([(b"connection", named)]) == []
    assert to_client([(b"connection", b"x-request-id")]) == []


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"x-api-key",
        b"cookie",
        b"proxy-authorization",
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"accept-encoding",
        b"expect",
        b"x-conversation-id",
        b"x-request-id",
        b"x-weir-amount",
        b"x-weir-customer",
        b"x-weir-",
    ],
)
def test_credentials_framing_and_spoofs_do_not_reach_the_upstream(name: bytes) -> None:
    """The client's key is not the upstream's business; `X-Conversation-Id` would keep a stream alive and replayable."""
    assert to_upstream([(name, b"wk_secret"), (name, b"again")]) == []
    assert b"secret" not in upstream_head(b"/", FIXED, b"r1", [(name, b"wk_secret")], 5)


@pytest.mark.parametrize(
    "name", [b"content-length", b"x-request-id", b"x-weir-amount", b"transfer-encoding", b"keep-alive"]
)
def test_an_upstream_can_not_speak_for_weir(name: bytes) -> None:
    """Amounts, ids and framing are Weir's."""
    assert to_client([(name, b"x")]) == []


def test_an_upstreams_content_headers_pass() -> None:
    """They describe the body, which passes too."""
    fields = [(b"content-type", b"text/event-stream"), (b"server", b"llama.cpp"), (b"access-control-allow-origin", b"")]
    assert to_client(fields) == [
        b"content-type: text/event-stream",
        b"server: llama.cpp",
        b"access-control-allow-origin: ",
    ]


class _Parsed:
    """Headers as the gateway's own parser delivers them."""

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


@pytest.mark.parametrize("parser", [httptools.HttpRequestParser, httptools.HttpResponseParser])
@pytest.mark.parametrize(
    "line",
    [
        b"X-A: 1\r\n Authorization: Bearer x",
        b"X-A: 1\rX-Weir-B: 2",
        b"X-A: 1\nX-Weir-B: 2",
        b"X-A: 1\x00X-Weir-B: 2",
        b"X-A: 1\x0bX-Weir-B: 2",
        b"X A: 1",
        b"X-A : 1",
        b": 1",
    ],
)
def test_no_line_that_could_become_two_gets_past_the_parser(
    line: bytes, parser: type[httptools.HttpRequestParser | httptools.HttpResponseParser]
) -> None:
    """What is written here is what was parsed there: neither side lets a line end or a blank into a field."""
    start = b"POST / HTTP/1.1" if parser is httptools.HttpRequestParser else b"HTTP/1.1 200 OK"
    with pytest.raises(httptools.HttpParserError):
        parser(_Parsed()).feed_data(start + b"\r\nHost: h\r\n" + line + b"\r\n\r\n")


def test_what_a_parser_lets_through_is_written_back_as_the_same_fields() -> None:
    """Bytes beyond ASCII, empty values, blanks inside; spoofs and credentials in capitals stay behind."""
    sent = [
        (b"X-A", b"\xff\xfe"),
        (b"X-B", b""),
        (b"X-C", b"a: b\tc"),
        (b"AUTHORIZATION", b"Bearer x"),
        (b"X-WEIR-A", b"1"),
    ]
    first, again = _Parsed(), _Parsed()
    lines = b"".join(b"%b: %b\r\n" % field for field in sent)
    httptools.HttpRequestParser(first).feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")
    httptools.HttpRequestParser(again).feed_data(upstream_head(b"/v1/x", FIXED, b"r1", first.headers, 0))
    assert again.headers[len(OWN) :] == [(b"x-a", b"\xff\xfe"), (b"x-b", b""), (b"x-c", b"a: b\tc")]
    assert [name for name, _ in again.headers[: len(OWN)]] == [own.split(b":")[0] for own in OWN]


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer wk_1")], b"wk_1"),
        ([(b"authorization", b"bearer  wk_1 ")], b"wk_1"),
        ([(b"authorization", b"BEARER wk_1")], b"wk_1"),
        ([(b"x-api-key", b" wk_2")], b"wk_2"),
        ([(b"authorization", b"Basic abc"), (b"x-api-key", b"wk_2")], b"wk_2"),
        ([(b"authorization", b"Bearer wk_1"), (b"x-api-key", b"wk_2")], b"wk_1"),
        ([(b"authorization", b"Bearer wk_1"), (b"authorization", b"Bearer wk_3")], b"wk_1"),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"wk_1")], None),
        ([(b"authorization", b"Bearer ")], b""),
        ([(b"cookie", b"wk_1")], None),
        ([], None),
    ],
)
def test_the_key_is_where_clients_put_it(headers: Headers, key: bytes | None) -> None:
    """OpenAI's and Anthropic's ways; the first one shown counts, and none of them goes further."""
    assert credential(headers) == key
    assert not any(b"wk_" in line for line in to_upstream(headers))


@pytest.mark.parametrize(
    ("value", "is_stream"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_a_stream_is_known_by_its_content_type(value: bytes, is_stream: bool) -> None:
    """With its parameters, in any case."""
    assert is_event_stream([(b"x", b"text/event-stream"), (b"content-type", value)]) is is_stream
    assert not is_event_stream([])


def test_a_gathered_answer_has_the_headers_of_json() -> None:
    """What is about the stream goes, the rest stays."""
    stream = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
        (b"server", b"s"),
    ]
    assert as_json(stream) == [(b"server", b"s"), (b"content-type", b"application/json; charset=utf-8")]


@pytest.mark.parametrize(
    ("status", "line"),
    [(200, b"200 OK"), (404, b"404 Not Found"), (429, b"429 Too Many Requests"), (599, b"599 "), (299, b"299 ")],
)
def test_a_status_line_is_whole_for_any_status(status: int, line: bytes) -> None:
    """Also for those that nobody named."""
    assert status_line(status) == b"HTTP/1.1 " + line + b"\r\n"
