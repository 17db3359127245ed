"""The spool: where events wait, as durable as in the ledger, while the database is away (I1).

One SQLite file per worker in a folder of its own, `synchronous=FULL`: an `append` that returned survives a power cut.
Events keep their order, and leave only when the ledger has them; one that came to the ledger twice is refused there by
its id. Beside them the spool keeps the checkpoints of streams in flight, as the ledger does.

The file belongs to whoever holds the lock beside it, which dies with its holder: so a spool whose worker is gone is
taken over by another process on this host, and never by two. An event that the ledger will not have (a fault of ours)
is set aside and kept; so is one whose text is not what was written (a torn disk), which its checksum tells.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from billing import ids
from billing.errors import WeirError
from billing.ledger import due as dues_
from billing.ledger.due import Due
from billing.limits import SPOOL_ROWS_MAX

SUFFIX = ".spool"
SUM_CHARS = 8
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a text raises that is no event's."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, due TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (id TEXT PRIMARY KEY, due TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS refused (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, due TEXT NOT NULL) STRICT;
"""


_CHECKPOINTS = "SELECT rowid, CAST(id AS BLOB), CAST(due AS BLOB) FROM checkpoints ORDER BY id"
_COUNTS = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM refused)"

log = logging.getLogger("weir.spool")


class SpoolError(WeirError):
    """The spool can not be written."""


class Spooled(NamedTuple):
    """An event or a checkpoint, and its place in the order; `due` is None if its text is damaged."""

    seq: int
    event_id: str
    due: Due | None


class Spool:
    """One spool, locked; any thread may use it."""

    def __init__(self, path: Path) -> None:
        """Open or make a spool. Raises SpoolError, BlockingIOError if somebody else has it."""
        self.path = path
        self._mutex = threading.Lock()
        self._turn = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"{path.parent} can not be written: {error.strerror}; set [database] spool") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._connection = _opened(path)
            self.rows: int = self._one("SELECT count(*) FROM events")
            self.refused: int = self._one("SELECT count(*) FROM refused")
        except sqlite3.Error as error:
            os.close(self._lock)
            raise SpoolError(f"{path} can not be written: {error}; set [database] spool to another folder") from None
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def new(cls, folder: Path) -> "Spool":
        """Make this worker's own spool. Raises SpoolError."""
        return cls(folder.joinpath(f"{ids.uuid7()}{SUFFIX}"))

    @contextlib.contextmanager
    def turn(self, wait_s: float) -> Iterator[None]:
        """Wait for one's turn, `wait_s` seconds at most, and keep it for the block: an event that has to follow those
        in here is written in turn, and so are the last of these taken away.
        """
        is_mine = self._turn.acquire(timeout=wait_s)
        try:
            yield
        finally:
            if is_mine:
                self._turn.release()

    def append(self, dues: Sequence[Due]) -> None:
        """Make events durable, and forget their checkpoints. Raises SpoolError if it can not be done."""
        if self.rows + len(dues) > SPOOL_ROWS_MAX:
            raise SpoolError(f"{self.path} holds {self.rows} events; that is its limit")
        rows = [(due.event.id, _summed(due)) for due in dues]
        with self._writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO events (id, due) VALUES (?, ?)", rows)
            connection.executemany("DELETE FROM checkpoints WHERE id = ?", [(row[0],) for row in rows])
        self.rows = self._one("SELECT count(*) FROM events")

    def checkpoint(self, made: Sequence[Due], over: Sequence[str]) -> None:
        """Keep checkpoints of streams in flight, and forget those of streams that are over. Raises SpoolError."""
        rows = [(due.event.id, _summed(due)) for due in made]
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO checkpoints (id, due) VALUES (?, ?)", rows)
            connection.executemany("DELETE FROM checkpoints WHERE id = ?", [(event_id,) for event_id in over])

    def first(self, rows_max: int) -> list[Spooled]:
        """Return the oldest events. Raises SpoolError."""
        query = "SELECT seq, CAST(id AS BLOB), CAST(due AS BLOB) FROM events ORDER BY seq LIMIT ?"
        return [_read(*row) for row in self._all(query, rows_max)]

    def checkpoints(self) -> list[Spooled]:
        """Return all checkpoints. Raises SpoolError."""
        return [_read(*row) for row in self._all(_CHECKPOINTS)]

    def remove(self, seqs: Sequence[int]) -> None:
        """Forget events: the ledger has them. Raises SpoolError."""
        with self._writing() as connection:
            connection.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq in seqs])
        self.rows = self._one("SELECT count(*) FROM events")

    def forget_checkpoints(self) -> None:
        """Forget all checkpoints: the ledger has them. Raises SpoolError."""
        with self._writing() as connection:
            connection.execute("DELETE FROM checkpoints")

    def set_aside(self, seq: int) -> None:
        """Keep an event that the ledger refuses where it does not stop the others. Raises SpoolError."""
        with self._writing() as connection:
            connection.execute("INSERT INTO refused (id, due) SELECT id, due FROM events WHERE seq = ?", (seq,))
            connection.execute("DELETE FROM events WHERE seq = ?", (seq,))
        self.rows = self._one("SELECT count(*) FROM events")
        self.refused = self._one("SELECT count(*) FROM refused")

    def set_checkpoint_aside(self, seq: int) -> None:
        """Keep a checkpoint that can not be read. Raises SpoolError."""
        with self._writing() as connection:
            connection.execute("INSERT INTO refused (id, due) SELECT id, due FROM checkpoints WHERE rowid = ?", (seq,))
            connection.execute("DELETE FROM checkpoints WHERE rowid = ?", (seq,))
        self.refused = self._one("SELECT count(*) FROM refused")

    def close(self) -> None:
        """Let go of it; an empty one leaves no file."""
        with self._mutex:
            counts = [self._count(table) for table in ("events", "checkpoints", "refused")]
            self._connection.close()
            if not any(counts):
                for path in (*_files(self.path), _lock_of(self.path)):
                    path.unlink(missing_ok=True)
            os.close(self._lock)

    def _count(self, table: str) -> int:
        found: int = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 -- ours
        return found

    def _one(self, query: str) -> int:
        found: int = self._all(query)[0][0]
        return found

    def _all(self, query: str, *values: int) -> list[Any]:
        try:
            with self._mutex:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"{self.path} can not be read: {error}") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise SpoolError(f"{self.path} can not be written: {error}") from None


def _summed(due: Due) -> str:
    text = dues_.to_text(due)
    return f"{crc32(text.encode()):0{SUM_CHARS}x}{text}"


def _read(seq: int, event_id: bytes, raw: bytes) -> Spooled:
    """Read a row. What a release before checksums wrote begins at once."""
    due = None
    try:
        text = raw if raw.startswith(b"{") else raw[SUM_CHARS:]
        if text is raw or int(raw[:SUM_CHARS], 16) == crc32(text):
            due = dues_.from_text(text.decode())
    except UNREADABLE:
        pass
    return Spooled(seq, event_id.decode(errors="replace"), due)


def orphans(folder: Path) -> Iterator[Spool]:
    """Open each spool whose worker is gone; the caller closes it. One that can not be read is told and passed over."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield Spool(path)
        except BlockingIOError:
            continue  # its worker lives, or somebody else drains it
        except SpoolError as error:
            log.error("spool.failed", extra={"file": path.name, "error": str(error)})  # noqa: TRY400 -- it says why


class Waiting(NamedTuple):
    """How much waits in a folder's spools, without taking them."""

    files: int
    rows: int
    refused: int


def waiting(folder: Path) -> Waiting:
    """Count what waits. Raises SpoolError."""
    files = rows = refused = 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as reader:
                found = reader.execute(_COUNTS).fetchone()
        except sqlite3.Error as error:
            if not path.exists():
                continue
            raise SpoolError(f"{path} can not be read: {error}") from None
        files, rows, refused = files + 1, rows + found[0], refused + found[1]
    return Waiting(files, rows, refused)


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(_SCHEMA)
    return connection


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _files(path: Path) -> tuple[Path, ...]:
    return path, Path(f"{path}-wal"), Path(f"{path}-shm")
