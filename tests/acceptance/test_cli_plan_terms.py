"""`weir plan add|set|show|settle` with allowances and tiers, on the command line and to the customer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock
from billing.ledger import events, migrate, versions
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, NOT_FOUND, REFUSED, USAGE, runner
from tests.unit.ledger.made import event, quote


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


def test_a_plan_includes_tokens_and_has_tiers(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 of 1,500 tokens are free, the rest is in the tier of 10 % off; listings and the trace say so."""
    weir = runner(capsys)
    made = weir("plan", "add", "gold", "--included-tokens", "1000", "--per", "month", "--tier", "500=10%", "--json")
    assert made.json["tiers"] == [{"above": 500, "discount": "10%"}]
    customer_id = weir("customer", "add", "acme", "--plan", "gold", "--json").json["id"]
    with database.writing() as conn:
        now = clock.now()
        used = event(now, customer_id=customer_id, finished_at=now, price_ref=quote().ref)
        versions.store_quote(conn, quote())
        events.append(conn, [used], 0)
    (settled,) = weir("plan", "settle", "--json").json
    assert (settled["tokens"], settled["adjustments"], settled["amount"]) == (1_500, 1, "-0.000046800000")
    assert weir("plan", "settle", "--json").json == []
    assert weir("usage", "--json").json[0]["amount"] == "0.000070200000"
    assert weir("plan", "show", "gold", "--json").json["used"][0]["tokens"] == 1_500
    assert weir("plan", "list", "--json").json[0]["included_tokens"] == 1_000
    (note,) = weir("trace", used.id, "--json").json["adjustments"]
    assert note["reason"] == "the plan's allowance and volume tiers"
    for wrong, code in (
        (("plan", "add", "x", "--tier", "10%"), USAGE),
        (("plan", "add", "x", "--tier", "10=100%"), REFUSED),
        (("plan", "add", "x", "--per", "day"), USAGE),
        (("plan", "add", "x", "--included-tokens", "-1"), USAGE),
        (("plan", "set", "gold"), USAGE),
        (("plan", "set", "gold", "--none", "--from", "-1d"), REFUSED),
        (("plan", "show", "silver"), NOT_FOUND),
    ):
        assert weir(*wrong).code == code, wrong
    card = weir("margin", "export").out
    assert 'included_tokens = 1000\ntiers = ["500=10%"]' in card
    Path("card.toml").write_text(card)
    assert weir("margin", "apply", "card.toml", "--json").json == []
    then = weir("plan", "set", "gold", "--included-amount", "2", "--per", "day", "--json").json["effective_from"]
    (planned,) = weir("margin", "plan", "card.toml", "--json").json["changes"]
    assert (planned["before"], planned["after"]) == ("per day, amount 2", "per month, 1000 tokens, 500=10%")
    assert [each["change"] for each in weir("margin", "apply", "card.toml", "--json").json] == ["change"]
    assert weir("plan", "show", "gold", "--json").json["per"] == "month"
    assert weir("margin", "rollback", "--to", then).code == DONE
    assert weir("plan", "show", "gold", "--json").json["included_amount"] == "2.000000000000"
    for table in ('name = "x"\nper = "year"', 'name = "gold"', 'name = "gold"\ntiers = [1]', "included_tokens = 5"):
        Path("wrong.toml").write_text(f"[[plan]]\n{table}\n")
        assert weir("margin", "apply", "wrong.toml").code == USAGE
    assert weir("plan", "set", "gold", "--none").code == DONE
    assert weir("plan", "show", "gold", "--json").json["per"] is None
