"""Fixed prices and minimums on the command line: set, explained, exported, planned, applied, rolled back, simulated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing.clock import Instant
from billing.ledger import accounts, events, migrate
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, REFUSED, USAGE, runner
from tests.unit.ledger.made import event

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


def test_prices_in_money_go_the_way_of_every_margin(
    database: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """From `set` to a card in git and back by a rollback; what is below cost, or no price, is refused."""
    weir = runner(capsys)
    assert weir("cost", "set", MODEL, "--input", "0.03", "--output", "0.12", "--request", "0.000001").code == DONE
    acme = weir("customer", "add", "acme", "--json").json["id"]
    before = weir("margin", "set", "30%", "--minimum", "input=0.05", "--json").json["recorded_at"]
    assert weir("margin", "set", "--fixed", "output=0.2", "--customer", "acme").code == USAGE
    assert (
        weir("margin", "set", "--fixed", "input=0.04", "--fixed", "output=0.11", "--customer", "acme").code == REFUSED
    )
    row = weir("margin", "set", "20%", "--fixed", "output=0.2", "--customer", "acme", "--json").json
    assert (row["fixed"], row["minimum"]) == ({"output": "0.2000"}, None)
    seen = weir("margin", "explain", MODEL, "--customer", "acme", "--json").json
    assert [seen["price"][unit] for unit in ("input", "cached_input", "output", "reasoning", "request")] == [
        *("0.0500", "0.0500", "0.2000", "0.2000"),
        "0.0000012",
    ]
    assert seen["rules"][0]["margin"] == "20%, fixed output 0.2000"
    (tmp_path / "card.toml").write_text(weir("margin", "export").out)
    assert 'fixed = { output = "0.2000" }' in (tmp_path / "card.toml").read_text()
    assert weir("margin", "apply", "card.toml", "--json").json == []
    assert [each["change"] for each in weir("margin", "rollback", "--to", before, "--json").json] == ["remove"]
    again = weir("margin", "plan", "card.toml", "--json").json
    assert [each["after"] for each in again["changes"]] == ["20%, fixed output 0.2000"]
    assert weir("margin", "apply", "card.toml").code == DONE

    with database.writing() as conn:
        when = Instant(accounts.find_customer(conn, acme).created_at)
        events.append(conn, [event(when, customer_id=acme)], 0)
    fixed = ("--fixed", "input=0.1", "--fixed", "output=0.3")
    (simulated,) = weir("simulate", *fixed, "--customer", "acme", "--json").json
    assert simulated["revenue_after"] == "0.000251000000"
    for wrong in ("output", "output=", "words=0.1", "output=-1", "output=5000"):
        assert weir("margin", "set", "30%", "--fixed", wrong).code in (USAGE, REFUSED)
