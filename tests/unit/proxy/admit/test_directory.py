"""The directory: a change holds after one look at the ledger, and a worker starts from what its host has kept."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from billing import clock, ids
from billing.clock import Instant
from billing.credit.budget import Span
from billing.errors import DatabaseAwayError
from billing.ledger import accounts, budgets, credit, memo, migrate, plans, versions
from billing.ledger.accounts import Cause
from billing.ledger.database import Connection, Database
from billing.money import Pico, PicoPerToken
from billing.pricing.book import PriceBook
from billing.pricing.margins import MarginRule, Scope, parse_margin
from billing.pricing.rates import CostRate
from proxy.admit import directory as directories
from proxy.admit.directory import NO_EPOCH, Directory, Snapshot
from proxy.admit.remembering import TOUCH_INTERVAL_S, Remembering

ACTOR = "tests"
GONE = "postgresql://nobody@127.0.0.1:1/nothing"
MODELS = ("qwen3.5-9b", "qwen3.5-27b")


@pytest.fixture
def ledger(database_url: str) -> Iterator[Database]:
    """A ledger of this program's schema, on each engine."""
    database = Database(database_url)
    migrate.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def gone() -> Iterator[Database]:
    """A database that is not there."""
    database = Database(GONE, wait_s=1)
    yield database
    database.close()


def now() -> Instant:
    """This moment."""
    return clock.now()


def add_cost(conn: Connection, model: str, price: int) -> None:
    """Set what a model costs."""
    at = now()
    rate = CostRate(
        id=ids.new_id("rate"),
        model=model,
        input=PicoPerToken(price),
        cached_input=None,
        output=PicoPerToken(4 * price),
        reasoning=None,
        request=Pico(0),
        effective_from=at,
        recorded_at=at,
    )
    versions.append_cost_rate(conn, rate, default_margin="30%", currency="usd", backdate=False, actor=ACTOR)


def add_margin(conn: Connection, scope: Scope, text: str) -> None:
    """Set a margin."""
    at = now()
    rule = MarginRule(
        id=ids.new_id("rule"),
        scope=scope,
        margin=parse_margin(text),
        allow_loss=False,
        effective_from=at,
        recorded_at=at,
    )
    versions.append_margin_rule(conn, rule, default_margin="30%", currency="usd", backdate=False, actor=ACTOR)


def add_key(conn: Connection, customer_id: str, **given: object) -> tuple[str, bytes]:
    """Make a key: its id, and the hash by which it is known."""
    values = {"models": None, "rpm": 0, "tpm": 0, "concurrency": 0, "expires_at": None, **given}
    key, secret = accounts.create_key(conn, customer_id, "a key", at=now(), actor=ACTOR, **values)  # type: ignore[arg-type]
    return key.id, ids.key_hash(secret.encode())


def fill(ledger: Database) -> dict[str, tuple[str, bytes]]:
    """Customers of every kind; a key of each by the customer's name."""
    keys = {}
    with ledger.writing() as conn:
        for number, model in enumerate(MODELS, 1):
            add_cost(conn, model, number * 30_000)
        gold = plans.add(conn, "gold", now(), ACTOR)
        for name in ("plain", "prepaid", "credited", "spent", "budgeted", "suspended", "planned"):
            customer = accounts.add_customer(conn, name, None, now(), ACTOR, is_prepaid=name == "prepaid")
            keys[name] = add_key(conn, customer.id, models=MODELS[:1] if name == "plain" else None, rpm=7)
            if name in ("prepaid", "credited"):
                for amount in (5, 6):
                    credit.grant(conn, customer.id, Pico(amount * 10**12), "usd", now(), ACTOR)
            if name == "budgeted":
                given = {"currency": "usd", "at": now(), "actor": ACTOR}
                budgets.put(conn, customer.id, None, Span.MONTH, Pico(10**12), is_soft=False, **given)  # type: ignore[arg-type]
                budgets.put(conn, customer.id, keys[name][0], Span.DAY, Pico(10**11), is_soft=True, **given)  # type: ignore[arg-type]
            if name == "suspended":
                accounts.suspend(conn, customer.id, Cause.MANUAL, "for a test", now(), ACTOR)
            if name == "planned":
                plans.assign(conn, customer.id, gold, gold.created_at, gold.created_at, ACTOR)
                add_margin(conn, Scope(None, customer.id), "80%")
        add_margin(conn, Scope(None, None, gold.id), "60%")
        add_margin(conn, Scope(MODELS[1]), "margin:40%")
    return keys


def of(database: Database, memory: Path | None = None) -> Directory:
    """A directory that nobody has started."""
    return Directory(database, "25%", "usd", 0, 9_000, memory=memory)


def everything(snapshot: Snapshot) -> dict[str, object]:
    """All that a snapshot knows, whatever a price book is made of."""
    book = {name: getattr(snapshot.book, name) for name in PriceBook.__slots__ if name != "_held"}
    return {"epoch": snapshot.epoch, "principals": snapshot.principals, **book}


def test_a_change_holds_after_one_look_and_a_look_comes_four_times_a_second(ledger: Database) -> None:
    """A revoked key, a suspended customer, a changed margin and a new limit: what was committed before a look holds."""
    assert directories.POLL_INTERVAL_S <= 0.25
    keys = fill(ledger)
    directory = of(ledger)
    key_id, secret = keys["plain"]

    def customer_id() -> str:
        found = directory.snapshot.principals[secret]
        assert found is not None
        return found.customer_id

    def price() -> int:
        quote = directory.snapshot.book.quote(MODELS[0], customer_id(), now())
        assert quote is not None
        return quote.price.output

    changes: list[tuple[Callable[[Connection], object], Callable[[], bool]]] = [
        (lambda conn: add_margin(conn, Scope(), "100%"), lambda: price() == 2 * 120_000),
        (
            lambda conn: accounts.suspend(conn, customer_id(), Cause.MANUAL, "a reason", now(), ACTOR),
            lambda: getattr(directory.snapshot.principals[secret], "suspension", None) == "a reason",
        ),
        (
            lambda conn: accounts.revoke_key(conn, key_id, now(), ACTOR),
            lambda: getattr(directory.snapshot.principals[secret], "is_revoked", False),
        ),
    ]
    for change, holds in changes:
        before = directory.snapshot
        with ledger.writing() as conn:
            change(conn)
        assert not holds()
        directory.poll()
        assert holds()
        assert directory.snapshot is not before, "one assignment: no request sees a mixture"
    same = directory.snapshot
    directory.poll()
    assert directory.snapshot is same, "nothing is loaded while nothing changes"


def test_what_a_host_keeps_is_all_that_the_ledger_says_of_keys_and_prices(
    ledger: Database, gone: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = fill(ledger)
    path = memo.path_of(tmp_path / "spool", ledger)
    there = of(ledger)
    remembering = Remembering(ledger, there, path)
    remembering.look(0)
    assert path.stat().st_mode & 0o777 == 0o600
    without = of(gone, path)
    assert without.is_stale
    assert everything(without.snapshot) == everything(there.snapshot)
    assert len(without.snapshot.principals) == len(keys)
    kinds = {
        found.customer_name: (found.has_credit, found.purses) for found in without.snapshot.principals.values() if found
    }
    assert [kinds[name][0] for name in ("plain", "prepaid", "credited", "budgeted")] == [False, True, True, False]
    assert kinds["budgeted"][1], "its hard budget is known"
    # of many keys only the newest are loaded at a start: the others are found when they are shown
    monkeypatch.setattr(directories, "KEYS_RELOADED_MAX", 1)
    few = of(gone, path)
    assert len(few.snapshot.principals) == 1
    for _, secret in keys.values():
        assert few.lookup(secret) == there.snapshot.principals[secret]
    with pytest.raises(DatabaseAwayError):
        few.lookup(b"\0" * 32)
    few.snapshot.epoch += 1
    few.snapshot.principals.clear()
    with pytest.raises(DatabaseAwayError):
        few.lookup(keys["plain"][1])


def test_what_is_kept_is_never_older_than_a_change_that_was_seen(ledger: Database, tmp_path: Path) -> None:
    keys = fill(ledger)
    path = memo.path_of(tmp_path, ledger)
    directory = of(ledger)
    remembering = Remembering(ledger, directory, path)
    remembering.look(0)
    first = memo.epoch_of(path)
    assert first == directory.snapshot.epoch
    with ledger.writing() as conn:
        accounts.revoke_key(conn, keys["plain"][0], now(), ACTOR)
    directory.poll()
    remembering._next_s = 100  # as after a long writing
    remembering.look(50)
    assert not path.exists(), "rather nothing than a key that is revoked"
    remembering.look(100)
    assert memo.epoch_of(path) == directory.snapshot.epoch == (first or 0) + 1
    old = time.time() - 1_000
    os.utime(path, (old, old))
    remembering.look(100 + TOUCH_INTERVAL_S)
    assert memo.age_s(path) < 900, "the ledger was seen"
    directory.is_stale = True
    os.utime(path, (old, old))
    remembering.look(200 + TOUCH_INTERVAL_S)
    assert memo.age_s(path) >= 1_000, "it was not"


def test_a_start_without_database_is_as_old_as_what_was_kept_and_ends_when_it_is_back(
    ledger: Database, gone: Database, tmp_path: Path
) -> None:
    """Nothing kept, a torn file, one of another version, one of the future: no key is known, and no price."""
    keys = fill(ledger)
    path = memo.path_of(tmp_path, ledger)
    Remembering(ledger, of(ledger), path).look(0)
    old = time.time() - 1_000
    os.utime(path, (old, old))
    assert 1_000 <= of(gone, path).age_s(time.monotonic()) < 1_100
    content = path.read_bytes()
    newest = migrate.revisions()[-1].encode()
    for damaged in (None, b"", content[:5_000], b"x" * 5_000, content.replace(newest, b"9999", 1)):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        directory = of(gone, path)
        assert (directory.snapshot.epoch, directory.snapshot.principals) == (NO_EPOCH, {})
        assert directory.age_s(time.monotonic()) > 10**9
        assert directory.snapshot.book.quote(MODELS[0], None, now()) is None
        with pytest.raises(DatabaseAwayError):
            directory.lookup(keys["plain"][1])
    path.write_bytes(content)
    ahead = time.time() + 1_000
    os.utime(path, (ahead, ahead))
    directory = of(gone, path)
    assert directory.snapshot.epoch == NO_EPOCH
    directory._database = ledger  # it is back
    directory.poll()
    assert everything(directory.snapshot) == everything(of(ledger).snapshot)
    assert not directory.is_stale
    assert directory.age_s(time.monotonic()) < 100
