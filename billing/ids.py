"""Ids and secrets of our own making.

Ids are UUIDv7 (RFC 9562 §5.7): time-ordered, so that an index on them grows at its right edge (random ids cost
SQLite five times as much, measured). Within a process they are strictly increasing. API keys are 256 random bits,
shown once; only their SHA-256 is stored: a key has too much entropy to be guessed from an unsalted hash, and the
lookup has to be one dictionary access.
"""

import hashlib
import os
import secrets
import threading
import time

KEY_PREFIX = "wk_"

_lock = threading.Lock()


class _Sequence:
    """The last id's timestamp and counter: 48 bits of milliseconds, then 12 + 62 bits that only grow.

    Random bytes are drawn for many ids at once: the system call costs as much as the rest of an id.
    """

    __slots__ = ("low", "millisecond", "stock", "used")

    def __init__(self) -> None:
        self.millisecond = 0
        self.low = 0
        self.restock()

    def restock(self) -> None:
        """Draw the random bytes of the ids to come."""
        self.stock = os.urandom(_STOCK_BYTES)
        self.used = 0

    def random(self, size: int) -> int:
        """Return a random integer of so many bytes; each byte is used once."""
        if self.used + size > _STOCK_BYTES:
            self.restock()
        start = self.used
        self.used = start + size
        return int.from_bytes(self.stock[start : start + size])


_STOCK_BYTES = 4_096
_LOW_BITS = 74
_sequence = _Sequence()
os.register_at_fork(after_in_child=_sequence.restock)  # a child must not draw what its parent draws


def uuid7() -> str:
    """Return a new UUIDv7 as text; later calls in this process give greater texts."""
    with _lock:
        millisecond = time.time_ns() // 1_000_000
        if millisecond > _sequence.millisecond:
            _sequence.millisecond = millisecond
            _sequence.low = _sequence.random(10) >> 7  # 73 bits: room to count up
        else:
            _sequence.low += 1 + _sequence.random(4)
            if _sequence.low >> _LOW_BITS:
                _sequence.millisecond += 1
                _sequence.low = _sequence.random(10) >> 7
        high, low = _sequence.millisecond, _sequence.low
    return _text(high, low)


def _text(millisecond: int, low: int) -> str:
    """Write 48 bits of time and 74 of anything as a UUIDv7."""
    value = millisecond << 80 | 7 << 76 | low >> 62 << 64 | 2 << 62 | low & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def derived(event_id: str, purpose: str) -> str:
    """Return the id of what follows from an event, the same however often it is asked: of its time, else a hash."""
    low = int.from_bytes(hashlib.sha256(f"{purpose}:{event_id}".encode()).digest()[:10]) >> 6
    return _text(int(event_id.replace("-", "")[:12], 16), low)


def new_id(prefix: str) -> str:
    """Return an id that names its kind: "cust_…", "key_…"."""
    return f"{prefix}_{uuid7().replace('-', '')}"


def new_key() -> str:
    """Return a new API key, "wk_" and 43 characters: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def key_hash(key: bytes) -> bytes:
    """Return what is stored of a key: its SHA-256."""
    return hashlib.sha256(key).digest()
