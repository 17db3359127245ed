"""Heads of requests that were parsed before: a client sends the same one, but for the body's length, again and again.

Every client library repeats its header fields byte for byte on each request, and httptools gives each field to Python
apart. So the head of a request that was parsed, authenticated and understood is kept, with the digits of its
`content-length` cut out, and a read that is such a head and its whole body needs no parser. What is not the same to the
byte is parsed as ever, as is what comes in several reads, chunked, or with a body longer than allowed.

Invariant: what is taken from here is what the parser made of the same bytes. A head with two lengths, an empty one or
a folded line never comes in, because the parser refuses it, and a line that looks like a length in a field's value can
not be there, because a value holds no line break (RFC 9112 §5). Only a known key's head is kept, so that strangers can
not crowd out customers.
"""

import re
from typing import NamedTuple

from billing.limits import HEAD_BYTES_KEPT_MAX, HEADS_KEPT_MAX
from proxy.relay.headers import Headers

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,12})\r\n")
_NOT_KEPT = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"trailer"})


class Head(NamedTuple):
    """What the parser made of a head; `headers` are without the body's length, `secret` is the key's SHA-256."""

    endpoint: str
    headers: Headers
    secret: bytes
    keep_alive: bool


class Heads:
    """The heads that this worker has seen."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes, body_bytes_max: int) -> tuple[Head, bytes] | None:
        """Return the head and the body if a read is one whole request with a known head."""
        split = _split(data)
        if split is None:
            return None
        key, body = split
        head = self._known.get(key)
        return None if head is None or len(body) > body_bytes_max else (head, body)

    def learn(self, data: bytes, head: Head) -> None:
        """Keep the head of a request that came whole in one read and was parsed."""
        split = _split(data)
        if split is None or len(split[0]) > HEAD_BYTES_KEPT_MAX or any(name in _NOT_KEPT for name, _ in head.headers):
            return
        if len(self._known) >= HEADS_KEPT_MAX:
            self._known.clear()
        fields = [field for field in head.headers if field[0] != b"content-length"]
        self._known[split[0]] = head._replace(headers=fields)


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a head without its length's digits, and the body, if the read is exactly one request; else None."""
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end)
    if length is None or int(length[1]) != len(data) - end:
        return None
    start, stop = length.span(1)
    return data[:start] + data[stop:end], data[end:]
