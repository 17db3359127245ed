"""From spools to the ledger: once, in order, and whoever's spool it is.

A chunk is one transaction of the ledger; only then does it leave the spool. A crash in between finds the events there
already, and writes nothing twice (`inflight.resolved`). What the ledger refuses by itself, one event at a time, and
what can not be read any more, is set aside, so that it does not stop the others.
"""

import logging
from contextlib import nullcontext
from pathlib import Path

from billing.clock import Clock
from billing.ledger import due as dues
from billing.ledger import inflight, leases, spool
from billing.ledger.database import Database, DatabaseError, is_away
from billing.ledger.due import Due
from billing.ledger.spool import Spool, Spooled, SpoolError
from billing.limits import SPOOL_CHUNK_ROWS

LAST_CHUNK_WITHIN_S = 2.0
"""How long either side waits for the other: a drainer whose ledger goes away again must not hold up requests."""

ODD = (ValueError, TypeError, AssertionError, OverflowError)
"""What an event that no ledger could hold raises before, or instead of, an error of the database."""

log = logging.getLogger("weir.spool")


def drain(database: Database, source: Spool, shard: int, now: Clock) -> int:
    """Bring all events of a spool into the ledger, and return how many that were.

    Once the ledger is known to take them, whoever writes to the spool waits for the last chunk: under load it would
    grow as fast as it is emptied. Raises DatabaseAwayError or DatabaseError while the database is away, SpoolError.
    """
    drained, is_back = 0, False
    while source.rows:
        is_last = is_back and source.rows <= SPOOL_CHUNK_ROWS
        with source.turn(LAST_CHUNK_WITHIN_S) if is_last else nullcontext():
            chunk = source.first(SPOOL_CHUNK_ROWS)
            for each in chunk:
                if each.due is None:
                    _tell_damage(source, each)
                    source.set_aside(each.seq)
            readable = [each for each in chunk if each.due is not None]
            if readable:
                drained += _drain_chunk(database, source, readable, shard, now)
        is_back = True
    return drained


def adopt(database: Database, folder: Path, shard: int, now: Clock) -> int:
    """Drain every spool whose worker is gone; its streams in flight become interrupted events. Raises as `drain`."""
    drained = 0
    for orphan in spool.orphans(folder):
        try:
            drained += drain(database, orphan, shard, now)
            drained += _interrupt(database, orphan, shard, now)
        except SpoolError as error:  # of the others each has its own file
            log.error("spool.failed", extra={"file": orphan.path.name, "error": str(error)})  # noqa: TRY400 -- it says why
        finally:
            orphan.close()
    if drained:
        log.warning("spool.adopted", extra={"rows": drained})
    return drained


def _interrupt(database: Database, orphan: Spool, shard: int, now: Clock) -> int:
    """Record what a dead worker's streams had delivered."""
    left = orphan.checkpoints()
    for each in left:
        if each.due is None:
            _tell_damage(orphan, each)
            orphan.set_checkpoint_aside(each.seq)
    known = [each.due for each in left if each.due is not None]
    if known:
        _record(database, known, shard, now)
        orphan.forget_checkpoints()
    return len(known)


def _tell_damage(source: Spool, row: Spooled) -> None:
    log.error("spool.damaged", extra={"file": source.path.name, "event": row.event_id})


def _drain_chunk(database: Database, source: Spool, chunk: list[Spooled], shard: int, now: Clock) -> int:
    try:
        _record(database, [each.due for each in chunk if each.due is not None], shard, now)
    except (DatabaseError, *ODD) as error:
        if isinstance(error, DatabaseError) and is_away(error):
            raise
        if len(chunk) == 1:
            log.exception("spool.refused", extra={"event": chunk[0].event_id})
            source.set_aside(chunk[0].seq)
            return 0
        middle = len(chunk) // 2
        return sum(_drain_chunk(database, source, half, shard, now) for half in (chunk[:middle], chunk[middle:]))
    source.remove([each.seq for each in chunk])
    return len(chunk)


def _record(database: Database, found: list[Due], shard: int, now: Clock) -> None:
    with database.writing() as conn:
        dues.store_quotes(conn, [due.quote for due in found])
        losses = dues.append(conn, inflight.resolved(conn, found), shard, leases.database_now(conn, now))
    for loss in losses:
        log.error("credit.uncovered", extra={"event": loss.adjusts, "amount_pico": -loss.amount_pico})
