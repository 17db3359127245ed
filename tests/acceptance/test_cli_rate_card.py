"""The rate card in git: exported, planned on history, applied at an instant, rolled back; what was believed when."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock, ids
from billing.clock import HOUR_US, Instant, instant_text
from billing.ledger import accounts, events, migrate, schema, versions
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.tables import book
from tests.unit.ledger.made import event

MODEL = "qwen3.5-9b"
BOOK = """
    cost    qwen3.5-9b  input 0.0300  output 0.1200    from 2026-01-01
    margin  global      30%                            from 2026-01-01
"""
CARD = """
[[margin]]
margin = "35%"
floor = "20%"

[[margin]]
customer = "acme"
margin = "15%"
"""


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands: acme used three requests, ben one, all billed at 30 % on 0.00009 usd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    quote = book(BOOK).quote(MODEL, None, clock.now())
    assert quote is not None
    with opened.writing() as conn:
        versions.store_quote(conn, quote)
        for name, count in (("acme", 3), ("ben", 1)):
            customer_id = accounts.add_customer(conn, name, None, clock.now(), "test").id
            at = Instant(clock.now() - 2 * HOUR_US)
            given = {"customer_id": customer_id, "price_ref": quote.ref}
            events.append(conn, [event(at, id=ids.uuid7(), **given) for _ in range(count)], 0)
    (tmp_path / "card.toml").write_text(CARD)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line; the cost and a margin of 30 % are set."""
    run = runner(capsys)
    assert run("cost", "set", MODEL, "--input", "0.03", "--output", "0.12", "--from", "-1d", "--backdate").code == DONE
    assert run("margin", "set", "30%", "--from", "-1d", "--backdate").code == DONE
    return run


def margin_of(weir: Weir, *options: str) -> str:
    """The margin that holds."""
    found: str = weir("margin", "explain", MODEL, *options, "--json").json["margin"]
    return found


def log(database: Database) -> list[tuple[str, str, Any]]:
    """Actor, action and details of all changes of margins."""
    table = schema.audit_log
    with database.reading() as conn:
        rows = conn.execute(sa.select(table).where(table.c.action.like("margin.%")).order_by(table.c.id)).all()
    return [(row.actor, row.action, json.loads(row.details)) for row in rows]


def rows(database: Database) -> list[tuple[object, ...]]:
    """All margin rules."""
    with database.reading() as conn:
        return [tuple(row) for row in conn.execute(sa.select(schema.margin_rules).order_by(schema.margin_rules.c.id))]


def test_a_plan_shows_changes_whom_they_cost_and_where_the_floor_bites_and_writes_nothing(
    weir: Weir, database: Database
) -> None:
    """By hand: ben pays 35 % on 0.00009, which is 3.85 % more; acme's 15 % are raised to the floor of 20 %."""
    before = rows(database)
    planned = weir("margin", "plan", "card.toml", "--at", "+1h", "--warn-above", "3%", "--json").json
    assert [(each["change"], each["scope"], each["before"], each["after"]) for each in planned["changes"]] == [
        ("change", "global", "30%", "35%, floor 20%"),
        ("add", "customer", "none", "15%"),
    ]
    effect = {each["customer"]: each for each in planned["effect"]}
    assert (effect["acme"]["revenue_before"], effect["acme"]["revenue_after"]) == ("0.000351000000", "0.000324000000")
    assert (effect["ben"]["revenue_after"], effect["ben"]["revenue_change_pct"]) == ("0.000121500000", "3.85")
    assert (effect["acme"]["warning"], effect["ben"]["warning"]) == (None, "pays more")
    assert [(each["customer"], each["rule_margin"], each["floor"]) for each in planned["floors"]] == [
        ("acme", "15%", "20%")
    ]
    assert planned["refused"] is None
    assert rows(database) == before
    table = weir("margin", "plan", "card.toml").out
    assert "Below the floor, and so raised to it" in table
    assert "pays more" not in table


def test_the_warning_begins_just_above_the_limit(weir: Weir) -> None:
    """0.000117 to 0.0001215 is 3.846… %: above 3.84, not above 3.85."""
    for limit, warning in (("3.84%", "pays more"), ("3.85", None)):
        effect = weir("margin", "plan", "--margin", "35%", "--warn-above", limit, "--json").json["effect"]
        assert {each["warning"] for each in effect} == {warning}


def test_one_rule_is_planned_beside_those_in_force(weir: Weir) -> None:
    """Only acme pays more."""
    planned = weir("margin", "plan", "--margin", "50%", "--customer", "acme", "--json").json
    assert [(each["change"], each["customer"], each["after"]) for each in planned["changes"]] == [
        ("add", "acme", "50%")
    ]
    assert [each["warning"] for each in planned["effect"]] == ["pays more", None]


def test_a_card_is_applied_at_its_instant_all_at_once_with_who_and_why(weir: Weir, database: Database) -> None:
    """Until then the old rules hold; a second application adds nothing."""
    at = instant_text(Instant(clock.now() + HOUR_US))
    done = weir("margin", "apply", "card.toml", "--at", at, "--reason", "GPU is dearer", "--actor", "anna", "--json")
    assert len(done.json) == 2
    assert (margin_of(weir), margin_of(weir, "--at", at), margin_of(weir, "--at", at, "--customer", "acme")) == (
        "30%",
        "35%",
        "20%",
    )
    actors = [(actor, action, details["reason"]) for actor, action, details in log(database)[1:]]
    assert actors == [
        ("anna", "margin.set", "GPU is dearer"),
        ("anna", "margin.set", "GPU is dearer"),
        ("anna", "margin.apply", "GPU is dearer"),
    ]
    written = rows(database)
    assert weir("margin", "apply", "card.toml", "--at", at, "--json").json == []
    assert rows(database) == written


def test_what_is_exported_is_what_is_in_force(weir: Weir, tmp_path: Path) -> None:
    """Applied again it changes nothing; an earlier instant gives the earlier set."""
    assert weir("margin", "apply", "card.toml").code == DONE
    exported = weir("margin", "export").out
    assert 'floor = "20%"' in exported
    assert 'customer = "acme"' in exported
    (tmp_path / "exported.toml").write_text(exported)
    assert weir("margin", "apply", "exported.toml", "--json").json == []
    assert 'margin = "30%"' in weir("margin", "export", "--at", "-1h").out


def test_a_rollback_restores_by_adding(weir: Weir, database: Database) -> None:
    """Also what was scheduled since is cancelled; nothing is deleted."""
    then = instant_text(clock.now())
    assert weir("margin", "apply", "card.toml").code == DONE
    assert weir("margin", "set", "90%", "--model", MODEL, "--from", "+2h").code == DONE
    before = rows(database)
    done = weir("margin", "rollback", "--to", then, "--reason", "a mistake", "--json").json
    assert [(each["change"], each["scope"]) for each in done] == [
        ("change", "global"),
        ("cancel", "model"),
        ("remove", "customer"),
    ]
    assert (margin_of(weir), margin_of(weir, "--customer", "acme"), margin_of(weir, "--at", "+3h")) == (
        "30%",
        "30%",
        "30%",
    )
    after = rows(database)
    assert [row for row in after if row in before] == before
    assert len(after) == len(before) + 3
    assert log(database)[-1][1] == "margin.rollback"


def test_both_times_are_kept(weir: Weir) -> None:
    """A rule that was backdated holds for yesterday; what was believed before is still to be seen."""
    before = instant_text(clock.now())
    assert weir("margin", "set", "10%", "--from", "-12h", "--backdate").code == DONE
    assert margin_of(weir, "--at", "-1h") == "10%"
    assert margin_of(weir, "--at", "-1h", "--as-of", before) == "30%"
    assert 'margin = "30%"' in weir("margin", "export", "--at", "-1h", "--as-of", before).out
    assert weir("margin", "explain", MODEL, "--as-of", "-2d").code == NOT_FOUND


def test_a_floor_set_by_command_holds_over_more_specific_rules(weir: Weir) -> None:
    """And explain says so."""
    assert weir("margin", "set", "5%", "--customer", "acme").code == DONE
    assert margin_of(weir, "--customer", "acme") == "5%"
    created = weir("margin", "set", "30%", "--floor", "margin:20%", "--json").json
    assert created["floor"] == "margin:20%"
    explained = weir("margin", "explain", MODEL, "--customer", "acme", "--json").json
    assert (explained["margin"], explained["margin_rule"]) == ("margin:20%", created["id"])
    assert explained["price"]["output"] == "0.1500"
    won = next(rule for rule in explained["rules"] if rule["verdict"] == "wins")
    assert won["margin"] == "5%"
    assert f"raised to the floor margin:20% of {created['id']} (global)" in won["because"]


def test_a_card_that_may_not_be_is_refused_as_a_whole(weir: Weir, database: Database, tmp_path: Path) -> None:
    """The second rule sells below cost without leave: neither is written, and the plan says it before."""
    (tmp_path / "loss.toml").write_text(
        '[[margin]]\nmargin = "40%"\n[[margin]]\nmodel = "qwen3.5-9b"\nmargin = "-10%"\nallow_loss = true\n'
        '[[margin]]\ncustomer = "ben"\nmargin = "99999%"\n'
    )
    before = rows(database)
    for command in ("plan", "apply"):
        assert weir("margin", command, "loss.toml").code == REFUSED
    assert rows(database) == before
    past = weir("margin", "plan", "card.toml", "--at", "-1h", "--json")
    assert past.code == REFUSED
    assert "is in the past" in json.loads(past.out)["refused"]
    assert weir("margin", "apply", "card.toml", "--at", "-1h").code == REFUSED
    assert rows(database) == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan",), USAGE),
        (("plan", "card.toml", "--margin", "5%"), USAGE),
        (("plan", "card.toml", "--warn-above", "much"), USAGE),
        (("plan", "card.toml", "--warn-above", "-1%"), USAGE),
        (("apply", "none.toml"), USAGE),
        (("apply", "cost.toml"), USAGE),
        (("apply", "nobody.toml"), NOT_FOUND),
        (("apply", "twice.toml"), USAGE),
        (("rollback",), USAGE),
        (("rollback", "--to", "yesterday"), USAGE),
    ],
)
def test_what_is_not_clear_is_refused(
    weir: Weir, database: Database, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """One line; a customer named by name and by id is still one."""
    with database.reading() as conn:
        acme = accounts.find_customer(conn, "acme").id
    (tmp_path / "cost.toml").write_text('[[cost]]\nmodel = "m"\ninput = "1"\noutput = "1"\n')
    (tmp_path / "nobody.toml").write_text('[[margin]]\ncustomer = "nobody"\nmargin = "1%"\n')
    (tmp_path / "twice.toml").write_text(
        f'[[margin]]\ncustomer = "acme"\nmargin = "1%"\n[[margin]]\ncustomer = "{acme}"\nmargin = "2%"\n'
    )
    answer = weir("margin", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("weir: ")
