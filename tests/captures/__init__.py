"""Answers of real model servers as they came off the wire, for replay and for known-answer tests.

One folder per server and model (its version is in the name or in the answers), recorded on loopback with one
request per connection. The models are scripted or random test models: what is evidence here is framing, field
names and counts.

Files are never edited. `NAME.response` is the whole answer with head and chunk framing, `NAME.request` the
request, left out where it is long and says nothing (thousands of words of prompt).
"""

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class CapturedRequest:
    """What the server was asked."""

    method: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Capture:
    """One recorded answer, taken apart without loss: the pieces joined are the raw bytes."""

    name: str
    raw: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    """Without transfer coding."""
    chunks: tuple[bytes, ...]
    """The body in the parts in which the server sent it; one part where it was not chunked."""
    pieces: tuple[bytes, ...]
    """The head, then each chunk with its framing, then the end mark: what a replay writes, one after the
    other.
    """
    is_complete: bool
    """False where the recording ends before the answer does, as when the client left."""

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def request(self) -> CapturedRequest:
        """The request behind the answer; FileNotFoundError where it was not kept."""
        raw = (_FOLDER / f"{self.name}.request").read_bytes()
        head, _, body = raw.partition(_HEAD_END)
        method, path, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
        return CapturedRequest(method=method, path=path, body=body)


def names(server: str = "") -> tuple[str, ...]:
    """All captures, or those whose folder begins with `server`, in a stable order."""
    found = (path.relative_to(_FOLDER).with_suffix("") for path in _FOLDER.glob("*/*.response"))
    return tuple(sorted(str(path) for path in found if str(path).startswith(server)))


def load(name: str) -> Capture:
    """The capture `FOLDER/NAME`, for example `llama-server_tiny-qwen35/chat_nonstream`."""
    raw = (_FOLDER / f"{name}.response").read_bytes()
    head, separator, coded = raw.partition(_HEAD_END)
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines))
    fields = {key.lower(): value for key, value in headers}
    if "chunked" in fields.get("transfer-encoding", ""):
        chunks, framed, is_complete = _split_chunks(coded)
    else:
        chunks, framed = ((coded,), (coded,)) if coded else ((), ())
        is_complete = len(coded) == int(fields["content-length"])
    return Capture(
        name=name,
        raw=raw,
        status=int(status_line.split(" ")[1]),
        headers=headers,
        body=b"".join(chunks),
        chunks=chunks,
        pieces=(head + separator, *framed),
        is_complete=is_complete,
    )


def _split_chunks(coded: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...], bool]:
    """Chunk contents, the same with framing, and whether the end mark is there (RFC 9112, section 7.1)."""
    contents: list[bytes] = []
    framed: list[bytes] = []
    at = 0
    while at < len(coded):
        line_end = coded.index(b"\r\n", at)
        size = int(coded[at:line_end].split(b";")[0], 16)
        end = line_end + 2 + size + 2
        framed.append(coded[at:end])
        if size == 0:
            assert end == len(coded), "nothing follows the end mark"
            return tuple(contents), tuple(framed), True
        contents.append(coded[line_end + 2 : line_end + 2 + size])
        at = end
    return tuple(contents), tuple(framed), False
