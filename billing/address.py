"""Where a model server is: `http://`, `https://`, or a Unix socket, with a path before its `/v1` if it has one.

    http://127.0.0.1:8080                  https://models.example.org/qwen
    unix:///run/llama.sock                 unix:///run/gateway.sock:/qwen

Behind the second colon of a socket stands the path, as in nginx' `proxy_pass`. Whatever could mean something else to
the reader than to Weir is refused here, when the configuration is read, and not met by a customer's request: a query,
credentials in the URL, a relative socket.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

SOCKET_PATH_BYTES_MAX = 107
"""What fits `sun_path` on Linux with its closing zero (unix(7)); asked for more, the kernel says only "too long"."""

_UNIX = "unix:"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's place: a host and port, or a socket; `host_line` is what its `Host` field says."""

    is_encrypted: bool
    host: str
    port: int
    socket_path: str | None
    path_prefix: str
    host_line: str


def parse(url: str) -> Address:
    """Return the address in a URL. Raises ValueError with a text that says what to write."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be printable ASCII without spaces; write other hosts in punycode, other paths in %-form")
    if url.startswith(_UNIX):
        return _socket(url.removeprefix(_UNIX))
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError("must start with http://, https:// or unix:///")
    if not parts.hostname:
        raise ValueError(f"names no host; write {parts.scheme}://127.0.0.1:8080, for example")
    if "@" in parts.netloc:
        raise ValueError("must hold no credentials; the server's key is `api_key`")
    if parts.query or parts.fragment:
        raise ValueError("must end with the path: no ? and no #")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port  # `port` raises ValueError beyond 65535
    is_encrypted = parts.scheme == "https"
    return Address(is_encrypted, parts.hostname, port, None, parts.path.rstrip("/"), parts.netloc)


def _socket(rest: str) -> Address:
    path, _, prefix = rest.removeprefix("//").partition(":/")
    if not path.startswith("/"):
        raise ValueError("must name the socket by its absolute path: unix:///run/llama.sock")
    if len(path) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"names a socket by more than {SOCKET_PATH_BYTES_MAX} bytes, which the kernel does not take")
    if "?" in prefix or "#" in prefix:
        raise ValueError("must end with the path: no ? and no #")
    prefix = prefix.rstrip("/")
    return Address(
        is_encrypted=False,
        host="localhost",
        port=0,
        socket_path=path.removesuffix(":"),
        path_prefix=f"/{prefix}" if prefix else "",
        host_line="localhost",
    )
