"""`weir plan`: customers that share margins, from an instant on; and what the plan's customers pay."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import proxy.main  # noqa: F401 -- it mounts the commands
from billing.ledger import migrate, schema
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, NOT_FOUND, REFUSED, USAGE, Weir, runner

MODEL = "qwen3.5-9b"


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line; a cost is set, and there is the plan gold."""
    run = runner(capsys)
    assert run("cost", "set", MODEL, "--input", "0.03", "--output", "0.12").code == DONE
    assert run("plan", "add", "gold", "--json").json["name"] == "gold"
    return run


def margin_of(weir: Weir, customer: str, *options: str) -> str:
    """The margin that holds for a customer."""
    found: str = weir("margin", "explain", MODEL, "--customer", customer, *options, "--json").json["margin"]
    return found


def test_a_plans_margin_is_that_of_its_customers(weir: Weir) -> None:
    """Below a customer's own, above a model's and the global one."""
    assert weir("customer", "add", "acme", "--plan", "gold").code == DONE
    assert weir("customer", "add", "ben").code == DONE
    assert weir("margin", "set", "40%").code == DONE
    assert weir("margin", "set", "35%", "--model", MODEL).code == DONE
    created = weir("margin", "set", "20%", "--plan", "gold", "--json").json
    assert (created["scope"], created["plan"], created["customer"]) == ("plan", "gold", None)
    assert (margin_of(weir, "acme"), margin_of(weir, "ben")) == ("20%", "35%")
    assert weir("margin", "set", "15%", "--plan", "gold", "--model", MODEL, "--json").json["scope"] == "plan+model"
    assert margin_of(weir, "acme") == "15%"
    assert weir("margin", "set", "10%", "--customer", "acme").code == DONE
    assert margin_of(weir, "acme") == "10%"
    explained = weir("margin", "explain", MODEL, "--customer", "acme", "--json").json
    assert explained["plan"] == "gold"
    assert [rule["scope"] for rule in explained["rules"]] == [
        "customer",
        "plan+model",
        "plan",
        "model",
        "global",
        "default",
    ]
    (listed,) = weir("plan", "list", "--json").json
    assert (listed["name"], listed["customers"], listed["margin"]) == ("gold", 1, "20%")


def test_a_change_of_plans_may_be_scheduled_and_ended(weir: Weir, database: Database) -> None:
    """The price of every instant is that of the plan then; the log says who and why."""
    assert weir("customer", "add", "acme").code == DONE
    assert weir("margin", "set", "20%", "--plan", "gold").code == DONE
    done = weir(
        "plan", "assign", "acme", "gold", "--from", "+2h", "--reason", "signed", "--actor", "anna", "--json"
    ).json
    assert (done["customer"], done["plan"]) == ("acme", "gold")
    assert weir("plan", "assign", "acme", "none", "--from", "+4h").code == DONE
    assert [margin_of(weir, "acme", "--at", at) for at in ("+1h", "+3h", "+5h")] == ["30%", "20%", "30%"]
    table = schema.audit_log
    with database.reading() as conn:
        lines = conn.execute(sa.select(table).where(table.c.action == "plan.assign").order_by(table.c.id)).all()
    assert (lines[0].actor, json.loads(lines[0].details)["reason"]) == ("anna", "signed")


def test_a_rate_card_names_plans(weir: Weir, tmp_path: Path) -> None:
    """Exported, planned and applied as every other rule."""
    assert weir("customer", "add", "acme", "--plan", "gold").code == DONE
    (tmp_path / "card.toml").write_text(
        '[[margin]]\nmargin = "30%"\nfloor = "20%"\n\n[[margin]]\nplan = "gold"\nmargin = "10%"\n'
    )
    planned = weir("margin", "plan", "card.toml", "--json").json
    assert [(each["scope"], each["plan"]) for each in planned["changes"]] == [("global", None), ("plan", "gold")]
    assert [(each["customer"], each["rule_margin"]) for each in planned["floors"]] == [("plan gold", "10%")]
    assert weir("margin", "apply", "card.toml").code == DONE
    assert margin_of(weir, "acme") == "20%"
    exported = weir("margin", "export").out
    assert 'plan = "gold"' in exported
    (tmp_path / "again.toml").write_text(exported)
    assert weir("margin", "apply", "again.toml", "--json").json == []


def test_a_plans_price_below_cost_is_refused(weir: Weir) -> None:
    """Also where a cost that rises later would make it one: no customer needs to be on the plan."""
    assert weir("margin", "set", "-10%", "--plan", "gold").code == REFUSED
    assert weir("margin", "set", "-10%", "--plan", "gold", "--allow-loss").code == DONE


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("plan", "add", "gold"), REFUSED),
        (("plan", "add", "none"), USAGE),
        (("plan", "add", " "), USAGE),
        (("plan", "add", "two\nlines"), USAGE),
        (("plan", "assign", "nobody", "gold"), NOT_FOUND),
        (("plan", "assign", "acme", "silver"), NOT_FOUND),
        (("plan", "assign", "acme", "gold", "--from", "-1d"), REFUSED),
        (("customer", "add", "ben", "--plan", "silver"), NOT_FOUND),
        (("margin", "set", "20%", "--plan", "gold", "--customer", "acme"), USAGE),
        (("margin", "set", "20%", "--plan", "silver"), NOT_FOUND),
        (("margin", "remove", "--plan", "gold"), NOT_FOUND),
        (("simulate", "--plan", "gold"), USAGE),
    ],
)
def test_what_can_not_be_is_refused(weir: Weir, arguments: tuple[str, ...], code: int) -> None:
    """One line that says why; a customer whose plan is unknown is not added."""
    assert weir("customer", "add", "acme").code == DONE
    answer = weir(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert [row["name"] for row in weir("customer", "list", "--json").json] == ["acme"]
    assert weir("simulate", "--margin", "20%", "--plan", "gold").code == DONE
