"""What the server saw of one request, and what came of it."""

import json
import threading
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Record:
    """One request. The test may read it while the server still adds to it."""

    method: str
    path: str
    """The target as sent, query included."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    """Without transfer coding."""
    raw: bytes
    """Head and body as they arrived."""
    connection: int
    """Which connection it came on; the first is 1."""
    client_closed: threading.Event = field(default_factory=threading.Event)
    """Set when the client hung up, or closed its sending half, which real servers take for the same.

    Also by a client that closes an idle connection after its answer: `left_early` tells the two apart.
    """
    finished: threading.Event = field(default_factory=threading.Event)
    """Set when the last step is done. Never set for a client that left before."""

    _sent: bytearray = field(default_factory=bytearray)

    @property
    def sent(self) -> bytes:
        """The bytes that the kernel has taken for the client so far.

        A client may hold bytes a moment before they are noted here: compare after `finished` or at a gate.
        """
        return bytes(self._sent)

    def note_sent(self, data: bytes) -> None:
        """Add to what was sent. For the server."""
        self._sent += data

    @property
    def left_early(self) -> bool:
        """Whether the client hung up before the script was done."""
        return self.client_closed.is_set() and not self.finished.is_set()

    def header(self, name: str) -> str | None:
        """The value of a request header, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)
