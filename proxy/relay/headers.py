"""Header lines, both ways: what passes, what is dropped, what is added.

Names are lower case, as both parsers deliver them. Hop-by-hop fields (RFC 9110 §7.6.1), and those that a `Connection`
field names, never pass; nor do the client's credentials (a browser's cookies may open Weir's own pages), anything that
would spoof Weir's own fields, and `X-Conversation-Id`, which keeps a llama.cpp stream alive and replayable after its
client has gone (measured).
"""

from http import HTTPStatus

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_UPSTREAM = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"accept-encoding",
    b"expect",
    b"x-conversation-id",
    b"x-request-id",
}
_NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length", b"x-request-id"}
_OWN_PREFIX = b"x-weir-"
_NOTHING: frozenset[bytes] = frozenset()

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode("ascii")) for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """Return the response's first line, with its CRLF."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def upstream_head(path: bytes, fixed: bytes, request_id: bytes, client: Headers, body_size: int) -> bytes:
    """Return the head of the upstream's request; `fixed` holds the upstream's own lines (host, credentials)."""
    named = _named_by_connection(client)
    lines = [
        b"POST ",
        path,
        b" HTTP/1.1\r\n",
        fixed,
        b"content-type: application/json\r\naccept-encoding: identity\r\nx-request-id: ",
        request_id,
        b"\r\ncontent-length: %d\r\n" % body_size,
    ]
    for name, value in client:
        if name not in _NOT_UPSTREAM and name not in named and not name.startswith(_OWN_PREFIX):
            lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def response_head(status: int, upstream: Headers, added: bytes) -> bytes:
    """Return the head of the client's response: the upstream's fields that pass, then `added` (lines with CRLF)."""
    named = _named_by_connection(upstream)
    lines = [status_line(status)]
    for name, value in upstream:
        if name not in _NOT_DOWNSTREAM and name not in named and not name.startswith(_OWN_PREFIX):
            lines += (name, b": ", value, b"\r\n")
    lines += (added, b"\r\n")
    return b"".join(lines)


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Return the fields that are for this hop alone: all `Connection` lines count as one list (RFC 9110 §5.3)."""
    named = _NOTHING
    for name, value in headers:
        if name == b"connection" and value not in (b"keep-alive", b"close"):
            named |= frozenset(token.strip() for token in value.lower().split(b","))
    return named


def credential(headers: Headers) -> bytes | None:
    """Return the key that the client shows: `Authorization: Bearer`, or `x-api-key`; None if it shows none."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None


def is_event_stream(headers: Headers) -> bool:
    """Whether the answer is a stream of server-sent events."""
    return content_type(headers).lower().startswith(b"text/event-stream")


def content_type(headers: Headers) -> bytes:
    """Return the answer's content type, b"" if it has none."""
    for name, value in headers:
        if name == b"content-type":
            return value
    return b""


def as_json(headers: Headers) -> Headers:
    """Return the fields of a stream as those of one JSON answer."""
    kept = [pair for pair in headers if pair[0] not in (b"content-type", b"cache-control", b"x-accel-buffering")]
    return [*kept, (b"content-type", b"application/json; charset=utf-8")]


def plain(headers: Headers) -> Headers:
    """Return the fields of a compressed answer as those of one that is not; its length is not known beforehand."""
    return [pair for pair in headers if pair[0] not in (b"content-encoding", b"content-length")]
