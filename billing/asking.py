"""Short questions to a model server on the calling thread: which models it has, how long a prompt is.

For `weir init`, discovery and counting; customers' requests go through `proxy/relay/connection.py`. Both dial what
`billing/address.py` says, with the same certificates: `tls_context` is the one place where they are read.

Invariant: a server's certificate and name are always verified, for `https://`. There is no switch for that: who has a
certificate of their own names its issuer in `ca_file`.
"""

import http.client
import socket
import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from billing.address import Address, parse
from billing.config import Upstream
from billing.errors import ConfigError

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, its fields, and its JSON (None unless the status is 200)."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    parsed: object = None


class _SocketConnection(http.client.HTTPConnection):
    """http.client on a Unix socket."""

    def __init__(self, path: str, timeout_s: int) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def tls_context(upstream: Upstream) -> ssl.SSLContext | None:
    """Return what an upstream's connections are encrypted with, None if they are not.

    Raises ConfigError, naming the upstream and the file that can not be used.
    """
    if not parse(upstream.url).is_encrypted:
        return None
    at = "ca_file"
    try:
        context = ssl.create_default_context(cafile=upstream.ca_file or None)
        if upstream.client_cert:
            at = "client_cert"
            context.load_cert_chain(upstream.client_cert, upstream.client_key or None, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        text = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"upstream {upstream.name!r}: {at} can not be used: {text}") from None
    return context


def _no_password() -> str:
    raise ValueError("its key has a password; give one without (openssl pkey -in KEY -out PLAIN)")


def ask(
    address: Address,
    path: str,
    *,
    timeout_s: int,
    bytes_max: int,
    body: bytes | None = None,
    api_key: str = "",
    tls: ssl.SSLContext | None = None,
) -> Reply | None:
    """GET, or POST of a JSON body; None if nothing that is HTTP and JSON comes back in time."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    if body is not None:
        headers["content-type"] = "application/json"
    connection = _connection(address, timeout_s, tls)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, address.path_prefix + path, body, {"host": address.host_line, **headers})
        answer = connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        parsed = orjson.loads(_read(answer, fields, bytes_max)) if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException, ValueError, zlib.error):  # ValueError: no JSON, or no host's name
        return None
    finally:
        connection.close()
    return Reply(answer.status, fields, parsed)


def _connection(address: Address, timeout_s: int, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if address.socket_path is not None:
        return _SocketConnection(address.socket_path, timeout_s)
    if address.is_encrypted:
        context = tls or ssl.create_default_context()
        return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)


def _read(answer: http.client.HTTPResponse, fields: Mapping[str, str], bytes_max: int) -> bytes:
    """Read a body; some proxies compress what was asked for as it is."""
    raw = answer.read(bytes_max)
    if fields.get("content-encoding", "identity").lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(raw, bytes_max)
    return raw
