"""Customers, suspensions and keys behave alike on both engines, and every change is seen and logged."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from billing import ids
from billing.clock import Instant
from billing.errors import NotFoundError, RefusedError, UsageError
from billing.ledger import accounts, epoch, migrate, principals, schema
from billing.ledger.accounts import ApiKey, Cause, Customer
from billing.ledger.database import Database

NOON = Instant(1_772_366_400_000_000)
LATER = Instant(NOON + 60_000_000)
ANNA = "cli:anna"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database on the newest schema, without rows."""
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def conn(database: Database) -> Iterator[sa.Connection]:
    """A transaction that writes."""
    with database.writing() as connection:
        yield connection


@pytest.fixture
def acme(conn: sa.Connection) -> Customer:
    """A customer."""
    return accounts.add_customer(conn, "acme", "billing@acme.example", NOON, ANNA)


def new_key(conn: sa.Connection, customer: Customer, **given: Any) -> tuple[ApiKey, str]:
    """A key of which only what is given differs from the plainest."""
    values = {"name": "app", "models": None, "rpm": 0, "tpm": 0, "concurrency": 0, "expires_at": None}
    return accounts.create_key(conn, customer.id, **{**values, **given}, at=NOON, actor=ANNA)


def principal_of(conn: sa.Connection, secret: str) -> accounts.Principal:
    """Whom the secret stands for."""
    found = principals.load(conn, ids.key_hash(secret.encode()).hex())
    assert found is not None
    return found


def log_of(conn: sa.Connection) -> list[tuple[str, str, str, Any]]:
    """The audit log: action, subject, actor, details."""
    table = schema.audit_log
    rows = conn.execute(sa.select(table).order_by(table.c.id))
    return [(row.action, row.subject, row.actor, json.loads(row.details)) for row in rows]


def test_a_customer_is_found_by_id_and_by_name(conn: sa.Connection, acme: Customer) -> None:
    """And is what was added."""
    assert acme.id.startswith("cust_")
    assert (acme.name, acme.email, acme.created_at, acme.suspensions) == ("acme", "billing@acme.example", NOON, ())
    assert accounts.find_customer(conn, acme.id) == acme
    assert accounts.find_customer(conn, " acme ") == acme
    assert accounts.get_customer(conn, acme.id) == acme
    assert accounts.list_customers(conn) == [acme]


def test_a_name_is_one_customers(conn: sa.Connection, acme: Customer) -> None:
    """Also when its letters are composed in the other of Unicode's two ways."""
    with pytest.raises(RefusedError, match=f"'acme' exists already .{acme.id}."):
        accounts.add_customer(conn, "acme", None, LATER, ANNA)
    accounts.add_customer(conn, "café", None, LATER, ANNA)
    with pytest.raises(RefusedError, match="exists already"):
        accounts.add_customer(conn, "cafe\N{COMBINING ACUTE ACCENT}", None, LATER, ANNA)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "1 to 200 characters"),
        ("   ", "1 to 200 characters"),
        ("x" * 201, "1 to 200 characters"),
        ("a\nb", "control or invisible"),
        ("a\x00b", "control or invisible"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "control or invisible"),
        ("a\N{LINE SEPARATOR}b", "control or invisible"),
        ("cust_acme", "must not begin with"),
        ("cus_acme", "must not begin with"),
        ("key_acme", "must not begin with"),
        ("wk_acme", "must not begin with"),
    ],
)
def test_what_can_not_be_a_name_is_refused(conn: sa.Connection, name: str, fault: str) -> None:
    """Before anything is written."""
    with pytest.raises(UsageError, match=fault):
        accounts.add_customer(conn, name, None, NOON, ANNA)
    assert accounts.list_customers(conn) == []


@pytest.mark.parametrize("name", ["x", "x" * 200, "Ömer & Søn ☕", "o'Brien; DROP TABLE customers", "acme_cust_"])
def test_other_names_are_kept_as_they_are(conn: sa.Connection, name: str) -> None:
    """To the character."""
    accounts.add_customer(conn, name, None, NOON, ANNA)
    assert accounts.find_customer(conn, name).name == name


@pytest.mark.parametrize("email", ["acme", "@acme", "a b@acme", "a@b@c", "a@" + "b" * 253, "a\x07@b"])
def test_what_is_no_address_is_refused(conn: sa.Connection, email: str) -> None:
    """An invoice could not reach it."""
    with pytest.raises(UsageError, match="no e-mail address"):
        accounts.add_customer(conn, "acme", email, NOON, ANNA)


def test_an_unknown_customer_is_answered_with_the_nearest_names(conn: sa.Connection) -> None:
    """Or with how to make one, or with how to see them all."""
    with pytest.raises(NotFoundError, match="no customer yet; `weir customer add NAME` makes one"):
        accounts.find_customer(conn, "acme")
    for name in ("Acme Berlin", "Acme Bern", "Zebra"):
        accounts.add_customer(conn, name, None, NOON, ANNA)
    with pytest.raises(NotFoundError, match="'acme bern'; did you mean 'Acme Bern' or 'Acme Berlin'"):
        accounts.find_customer(conn, "acme bern")
    with pytest.raises(NotFoundError, match="`weir customer list` shows all"):
        accounts.find_customer(conn, "quite another")


def test_causes_of_suspension_are_independent(conn: sa.Connection, acme: Customer) -> None:
    """Paying an invoice does not undo the admin's decision, nor the other way round."""
    assert accounts.suspend(conn, acme.id, Cause.MANUAL, "abuse", NOON, ANNA)
    assert accounts.suspend(conn, acme.id, Cause.UNPAID, "invoice in_1 is unpaid", LATER, "stripe")
    held = accounts.get_customer(conn, acme.id).suspensions
    assert [(s.cause, s.reason, s.since) for s in held] == [
        (Cause.MANUAL, "abuse", NOON),
        (Cause.UNPAID, "invoice in_1 is unpaid", LATER),
    ]
    assert accounts.resume(conn, acme.id, Cause.UNPAID, None, LATER, "stripe")
    assert [s.cause for s in accounts.get_customer(conn, acme.id).suspensions] == [Cause.MANUAL]
    assert accounts.resume(conn, acme.id, Cause.MANUAL, "settled", LATER, ANNA)
    assert accounts.get_customer(conn, acme.id).suspensions == ()


def test_suspending_twice_keeps_the_first_and_logs_once(conn: sa.Connection, acme: Customer) -> None:
    """So a repeated webhook changes nothing; the same holds for resuming."""
    assert accounts.suspend(conn, acme.id, Cause.UNPAID, "first", NOON, "stripe")
    assert not accounts.suspend(conn, acme.id, Cause.UNPAID, "second", LATER, "stripe")
    assert accounts.get_customer(conn, acme.id).suspensions[0].reason == "first"
    assert accounts.resume(conn, acme.id, Cause.UNPAID, None, LATER, "stripe")
    assert not accounts.resume(conn, acme.id, Cause.UNPAID, None, LATER, "stripe")
    assert [action for action, *_ in log_of(conn)] == ["customer.add", "customer.suspend", "customer.resume"]


def test_suspending_nobody_is_not_found(conn: sa.Connection) -> None:
    """Rather than a row that names nobody."""
    with pytest.raises(NotFoundError):
        accounts.suspend(conn, "cust_none", Cause.MANUAL, "abuse", NOON, ANNA)


def test_a_link_to_stripe_belongs_to_one_customer(conn: sa.Connection, acme: Customer) -> None:
    """And a linked customer keeps its payer until it is unlinked."""
    other = accounts.add_customer(conn, "other", None, NOON, ANNA)
    accounts.link_stripe(conn, acme.id, "cus_1", None, NOON, ANNA)
    accounts.link_stripe(conn, acme.id, "cus_1", "sub_1", LATER, ANNA)
    with pytest.raises(RefusedError, match="cus_1 is linked to the customer 'acme'"):
        accounts.link_stripe(conn, other.id, "cus_1", None, LATER, ANNA)
    with pytest.raises(RefusedError, match="'acme' is linked to cus_1; unlink it first"):
        accounts.link_stripe(conn, acme.id, "cus_2", None, LATER, ANNA)
    accounts.link_stripe(conn, acme.id, "cus_1", None, LATER, ANNA)
    linked = accounts.find_by_stripe(conn, "cus_1")
    assert linked is not None
    assert (linked.id, linked.stripe_subscription_id) == (acme.id, "sub_1")
    accounts.unlink(conn, acme.id, LATER, "stripe")
    assert accounts.get_customer(conn, acme.id) == acme
    assert accounts.find_by_stripe(conn, "cus_1") is None
    accounts.link_stripe(conn, other.id, "cus_1", None, LATER, ANNA)


def test_the_subscription_and_its_period_are_kept(conn: sa.Connection, acme: Customer) -> None:
    """A repeated answer of Stripe's changes nothing and is not logged again."""
    state = ("sub_1", "active", NOON, LATER)
    assert accounts.set_subscription(conn, acme.id, *state, NOON, "stripe")
    assert not accounts.set_subscription(conn, acme.id, *state, LATER, "stripe")
    assert accounts.set_past_due_since(conn, acme.id, NOON, LATER, "stripe")
    assert not accounts.set_past_due_since(conn, acme.id, NOON, LATER, "stripe")
    found = accounts.get_customer(conn, acme.id)
    assert (found.stripe_subscription_id, found.stripe_subscription_status) == ("sub_1", "active")
    assert (found.period_start, found.period_end, found.past_due_since) == (NOON, LATER, NOON)
    assert accounts.set_past_due_since(conn, acme.id, None, LATER, "stripe")
    assert accounts.get_customer(conn, acme.id).past_due_since is None
    assert [action for action, *_ in log_of(conn)][1:] == [
        "customer.subscription",
        "customer.past_due",
        "customer.past_due",
    ]


def test_a_keys_secret_is_shown_once_and_stored_nowhere(conn: sa.Connection, acme: Customer) -> None:
    """Neither it nor its greater part is in any table, the audit log included."""
    key, secret = new_key(conn, acme)
    assert secret.startswith("wk_")
    assert len(secret) == len("wk_") + 43
    assert key.hint == "wk_…" + secret[-4:]
    everything = repr([conn.execute(sa.select(table)).all() for table in schema.metadata.sorted_tables])
    assert key.id in everything
    assert secret[3:11] not in everything
    stored = conn.scalar(sa.select(schema.api_keys.c.secret_sha256))
    assert stored == ids.key_hash(secret.encode()).hex()
    assert everything.count(stored) == 1


def test_a_principal_is_all_that_a_gateway_needs(conn: sa.Connection, acme: Customer) -> None:
    """The key's limits, its customer, and the billing period."""
    given = {"models": ["b", "a", "b"], "rpm": 60, "tpm": 1000, "concurrency": 4, "expires_at": LATER}
    key, secret = new_key(conn, acme, **given)
    accounts.set_subscription(conn, acme.id, "sub_1", "active", NOON, LATER, NOON, "stripe")
    assert principal_of(conn, secret) == accounts.Principal(
        key_id=key.id,
        customer_id=acme.id,
        customer_name="acme",
        models=frozenset({"a", "b"}),
        rpm=60,
        tpm=1000,
        concurrency=4,
        expires_at=LATER,
        is_revoked=False,
        suspension=None,
        period_start=NOON,
        period_end=LATER,
        rates=(accounts.Rate(key.id, 60, 1000, 4, is_customers=False),),
    )
    assert key.models == ("a", "b")


def test_a_principal_of_a_plain_key_is_unlimited(conn: sa.Connection, acme: Customer) -> None:
    """Every model, no expiry, no limits, no period."""
    found = principal_of(conn, new_key(conn, acme)[1])
    assert (found.models, found.rpm, found.tpm, found.concurrency) == (None, 0, 0, 0)
    assert (found.expires_at, found.period_start, found.period_end) == (None, None, None)


def test_nobody_stands_behind_an_unknown_secret(conn: sa.Connection, acme: Customer) -> None:
    """Not even behind one that differs in the last character."""
    _, secret = new_key(conn, acme)
    other = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert principals.load(conn, ids.key_hash(other.encode()).hex()) is None
    assert principals.load(conn, secret) is None


def test_a_principal_says_why_its_customer_is_suspended(conn: sa.Connection, acme: Customer) -> None:
    """By the oldest cause that still holds."""
    _, secret = new_key(conn, acme)
    accounts.suspend(conn, acme.id, Cause.UNPAID, "invoice in_1 is unpaid", NOON, "stripe")
    accounts.suspend(conn, acme.id, Cause.MANUAL, "abuse", LATER, ANNA)
    assert principal_of(conn, secret).suspension == "invoice in_1 is unpaid"
    accounts.resume(conn, acme.id, Cause.UNPAID, None, LATER, "stripe")
    assert principal_of(conn, secret).suspension == "abuse"
    accounts.resume(conn, acme.id, Cause.MANUAL, None, LATER, ANNA)
    assert principal_of(conn, secret).suspension is None


def test_a_principal_is_one_query_by_indexes(database: Database) -> None:
    """The gateway asks it at each request that its cache does not answer."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        asked.append((statement, parameters))

    with database.writing() as conn:
        _, secret = new_key(conn, accounts.add_customer(conn, "acme", None, NOON, ANNA))
        sa.event.listen(conn, "before_cursor_execute", note)
        principal_of(conn, secret)
        sa.event.remove(conn, "before_cursor_execute", note)
        ((statement, parameters),) = asked
        if not database.is_sqlite:
            conn.execute(sa.text("SET LOCAL enable_seqscan = off"))  # else it reads one page of an empty table
        explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        plan = repr(conn.exec_driver_sql(explain + statement, parameters).all())
    assert ("SCAN" if database.is_sqlite else "Seq Scan") not in plan
    assert "secret_sha256" in plan


def test_a_revoked_key_stays_revoked(conn: sa.Connection, acme: Customer) -> None:
    """Its first time stays, it is logged once, and the other keys live on."""
    key, secret = new_key(conn, acme)
    _, other = new_key(conn, acme, name="other")
    assert accounts.revoke_key(conn, key.id, NOON, ANNA).revoked_at == NOON
    assert accounts.revoke_key(conn, key.id, LATER, ANNA).revoked_at == NOON
    assert principal_of(conn, secret).is_revoked
    assert not principal_of(conn, other).is_revoked
    assert [action for action, *_ in log_of(conn)].count("key.revoke") == 1


def test_a_key_is_revoked_by_its_id_only(conn: sa.Connection, acme: Customer) -> None:
    """The message for a pasted secret does not repeat it."""
    _, secret = new_key(conn, acme)
    with pytest.raises(UsageError) as caught:
        accounts.revoke_key(conn, secret, NOON, ANNA)
    assert secret not in str(caught.value)
    with pytest.raises(NotFoundError, match="no key 'key_none'"):
        accounts.revoke_key(conn, "key_none", NOON, ANNA)


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"models": []},
        {"models": ["a", " "]},
        {"rpm": -1},
        {"tpm": -1},
        {"concurrency": accounts.KEY_LIMIT_MAX + 1},
        {"expires_at": NOON},
        {"expires_at": Instant(NOON - 1)},
    ],
)
def test_a_key_that_could_not_work_is_not_made(conn: sa.Connection, acme: Customer, given: dict[str, Any]) -> None:
    """A limit below 0, no model at all, expired at birth."""
    with pytest.raises(UsageError):
        new_key(conn, acme, **given)
    assert accounts.list_keys(conn) == []


def test_a_key_that_expires_in_a_microsecond_is_made(conn: sa.Connection, acme: Customer) -> None:
    """The expiry is the first instant at which it no longer works."""
    assert new_key(conn, acme, expires_at=Instant(NOON + 1))[0].expires_at == NOON + 1


def test_keys_are_listed_by_customer(conn: sa.Connection, acme: Customer) -> None:
    """Or all, oldest first."""
    other = accounts.add_customer(conn, "other", None, NOON, ANNA)
    keys = [new_key(conn, customer)[0] for customer in (acme, other, acme)]
    assert accounts.list_keys(conn) == keys
    assert accounts.list_keys(conn, acme.id) == [keys[0], keys[2]]
    with pytest.raises(NotFoundError):
        accounts.create_key(conn, "cust_none", "app", None, 0, 0, 0, None, NOON, ANNA)


CHANGES: list[Callable[[sa.Connection, Customer, ApiKey], object]] = [
    lambda conn, _, __: accounts.add_customer(conn, "new", None, LATER, "cli:ben"),
    lambda conn, customer, _: accounts.suspend(conn, customer.id, Cause.MANUAL, "abuse", LATER, "cli:ben"),
    lambda conn, customer, _: accounts.resume(conn, customer.id, Cause.UNPAID, None, LATER, "cli:ben"),
    lambda conn, customer, _: accounts.link_stripe(conn, customer.id, "cus_1", "sub_2", LATER, "cli:ben"),
    lambda conn, customer, _: accounts.unlink(conn, customer.id, LATER, "cli:ben"),
    lambda conn, customer, _: accounts.set_subscription(
        conn, customer.id, "sub_1", "canceled", NOON, LATER, LATER, "cli:ben"
    ),
    lambda conn, customer, _: accounts.set_past_due_since(conn, customer.id, NOON, LATER, "cli:ben"),
    lambda conn, customer, _: new_key(conn, customer),
    lambda conn, _, key: accounts.revoke_key(conn, key.id, LATER, "cli:ben"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_by_gateways_and_logged(
    conn: sa.Connection, acme: Customer, change: Callable[[sa.Connection, Customer, ApiKey], object]
) -> None:
    """The epoch grows and one line says who did what to what."""
    accounts.link_stripe(conn, acme.id, "cus_1", "sub_1", NOON, ANNA)
    accounts.suspend(conn, acme.id, Cause.UNPAID, "unpaid", NOON, "stripe")
    key, _ = new_key(conn, acme)
    epoch_before, log_before = epoch.current(conn), log_of(conn)
    change(conn, acme, key)
    assert epoch.current(conn) > epoch_before
    assert len(log_of(conn)) == len(log_before) + 1


def test_the_log_says_who_did_what_to_whom(conn: sa.Connection, acme: Customer) -> None:
    """With what it was changed to."""
    accounts.suspend(conn, acme.id, Cause.MANUAL, "abuse", NOON, "cli:ben")
    assert log_of(conn) == [
        ("customer.add", acme.id, ANNA, {"name": "acme", "email": "billing@acme.example"}),
        ("customer.suspend", acme.id, "cli:ben", {"cause": "manual", "reason": "abuse"}),
    ]


def test_two_admins_can_not_make_the_same_customer(database: Database) -> None:
    """One of them is refused, whichever comes second."""
    start = Barrier(2)

    def add(_: int) -> bool:
        start.wait(30)
        try:
            with database.writing() as conn:
                accounts.add_customer(conn, "acme", None, NOON, ANNA)
        except RefusedError:
            return False
        return True

    for _ in range(5):
        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(add, range(2))) == [False, True]
        with database.writing() as conn:
            assert len(accounts.list_customers(conn)) == 1
            conn.execute(sa.delete(schema.customers))


@given(st.text(max_size=250))
@example("x" * 200)
@example("\N{COMBINING ACUTE ACCENT}")
def test_any_text_is_a_name_or_is_refused(text: str) -> None:
    """Nothing else happens; what is accepted is within the limit, visible, and accepted again unchanged."""
    try:
        name = accounts._checked_name(text)
    except UsageError:
        return
    assert 1 <= len(name) <= accounts.NAME_CHARS_MAX
    assert not set(name) & set("\n\r\t\0\x7f\u2028\u202e")
    assert accounts._checked_name(name) == name
