"""`weir simulate` as an owner uses it: a price is tried on history, and nothing is changed by it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock, ids
from billing.clock import HOUR_US, Instant
from billing.ledger import accounts, events, migrate, schema, versions
from billing.ledger.database import Database
from tests.acceptance.commands import NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.tables import book
from tests.unit.ledger.made import event

BOOK = """
    cost    qwen3.5-9b  input 0.0300  output 0.1200    from 2026-01-01
    margin  global      30%                            from 2026-01-01
"""


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands: acme used three requests, ben one, all billed at 30 % on 0.00009 usd."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    quote = book(BOOK).quote("qwen3.5-9b", None, clock.now())
    assert quote is not None
    with opened.writing() as conn:
        versions.store_quote(conn, quote)
        for name, count in (("acme", 3), ("ben", 1)):
            customer_id = accounts.add_customer(conn, name, None, clock.now(), "test").id
            at = Instant(clock.now() - 2 * HOUR_US)
            given = {"customer_id": customer_id, "price_ref": quote.ref}
            events.append(conn, [event(at, id=ids.uuid7(), **given) for _ in range(count)], 0)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line; the cost and the 30 % hold since yesterday."""
    run = runner(capsys)
    cost = ("cost", "set", "qwen3.5-9b", "--input", "0.03", "--output", "0.12", "--from", "-1d", "--backdate")
    assert run(*cost).code == 0
    assert run("margin", "set", "30%", "--from", "-1d", "--backdate").code == 0
    return run


def after(weir: Weir, *options: str) -> dict[str, str]:
    """Each customer's revenue in a scenario."""
    return {row["customer"]: row["revenue_after"] for row in weir("simulate", *options, "--json").json}


def test_another_margin_is_tried_on_history(weir: Weir) -> None:
    """By hand: 3 × 0.00009 × 1.5 and 0.00009 × 1.5."""
    acme, ben = weir("simulate", "--margin", "50%", "--json").json
    assert (acme["requests"], acme["revenue_before"], acme["revenue_after"]) == (3, "0.000351000000", "0.000405000000")
    assert (acme["cost_before"], acme["cost_after"]) == ("0.000270000000", "0.000270000000")
    assert (acme["margin_before"], acme["margin_after"]) == ("0.000081000000", "0.000135000000")
    assert (acme["revenue_change"], acme["revenue_change_pct"]) == ("0.000054000000", "15.38")
    assert (acme["margin_pct_before"], acme["margin_pct_after"]) == ("23.08", "33.33")
    assert (ben["customer"], ben["revenue_after"], ben["currency"]) == ("ben", "0.000135000000", "usd")


def test_a_margin_of_one_customer_leaves_the_others(weir: Weir) -> None:
    """And a rule that is more specific than the scenario still wins."""
    assert after(weir, "--margin", "50%", "--customer", "ben") == {"acme": "0.000351000000", "ben": "0.000135000000"}
    assert weir("margin", "set", "0%", "--customer", "acme", "--from", "-1d", "--backdate").code == 0
    assert after(weir, "--margin", "50%") == {"acme": "0.000270000000", "ben": "0.000135000000"}
    assert after(weir, "--margin", "50%", "--model", "another") == {"acme": "0.000270000000", "ben": "0.000117000000"}


def test_other_costs_are_tried(weir: Weir, tmp_path: Path) -> None:
    """Output at twice the cost: 0.00003 + 0.00012 for a request."""
    (tmp_path / "costs.toml").write_text('[[cost]]\nmodel = "qwen3.5-9b"\ninput = "0.03"\noutput = "0.24"\n')
    rows = weir("simulate", "--cost-file", "costs.toml", "--by", "model", "--json").json
    assert [(row["model"], row["cost_after"], row["revenue_after"]) for row in rows] == [
        ("qwen3.5-9b", "0.000600000000", "0.000780000000")
    ]


def test_a_rate_card_is_the_whole_rule_set(weir: Weir, tmp_path: Path) -> None:
    """What it does not name has the default margin, 30 %, and not what is in force."""
    assert weir("margin", "set", "80%", "--customer", "ben", "--from", "-1d", "--backdate").code == 0
    (tmp_path / "card.toml").write_text('[[margin]]\ncustomer = "acme"\nmargin = "margin:40%"\n')
    assert after(weir, "--file", "card.toml") == {"acme": "0.000450000000", "ben": "0.000117000000"}


def test_without_options_it_tells_what_backdated_versions_would_have_changed(weir: Weir) -> None:
    """History keeps its prices; the scenario is what is known today."""
    assert weir("margin", "set", "10%", "--from", "-1d", "--backdate").code == 0
    assert after(weir) == {"acme": "0.000297000000", "ben": "0.000099000000"}


def test_time_is_chosen_by_whole_hours(weir: Weir) -> None:
    """Nothing in the last hour; everything before it."""
    assert weir("simulate", "--margin", "50%", "--since", "-30m", "--json").json == []
    assert after(weir, "--margin", "50%", "--since", "-1d", "--until", "now")["acme"] == "0.000405000000"


def test_what_has_no_price_in_the_scenario_is_said(weir: Weir, database: Database) -> None:
    """A request from before every cost counts as 0, and not silently."""
    with database.writing() as conn:
        mine = conn.execute(sa.select(schema.customers.c.id).where(schema.customers.c.name == "ben")).scalar_one()
        events.append(conn, [event(Instant(clock.now() - 30 * HOUR_US), customer_id=mine)], 0)
    answer = weir("simulate", "--by", "model", "--json")
    assert answer.json[0]["requests_unpriced"] == 1
    assert "1 requests have no price in this scenario" in answer.err


def test_corrections_are_told_apart(weir: Weir, database: Database) -> None:
    """Both sides count the requests as they were."""
    with database.reading() as conn:
        request = conn.execute(sa.select(sa.func.min(schema.usage_events.c.id))).scalar_one()
    assert weir("adjust", request, "--refund", "--reason", "a mishap").code == 0
    acme, _ = weir("simulate", "--margin", "50%", "--json").json
    assert (acme["revenue_before"], acme["revenue_after"]) == ("0.000351000000", "0.000405000000")
    assert acme["corrections"] == "-0.000117000000"


def test_nothing_is_written(weir: Weir, database: Database) -> None:
    """Not a row in any table, whatever the scenario."""

    def picture() -> dict[str, list[object]]:
        with database.reading() as conn:
            return {table.name: list(conn.execute(sa.select(table))) for table in schema.metadata.sorted_tables}

    before = picture()
    assert weir("simulate", "--margin", "-20%", "--allow-loss").code == 0
    table = weir("simulate", "--margin", "50%").out
    assert "total" in table
    assert len(weir("simulate", "--margin", "50%", "--csv").csv) == 2
    assert picture() == before


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--customer", "acme"), USAGE),
        (("--margin", "much"), USAGE),
        (("--margin", "-5%"), REFUSED),
        (("--margin", "5%", "--customer", "nobody"), NOT_FOUND),
        (("--margin", "5%", "--file", "card.toml"), USAGE),
        (("--file", "none.toml"), USAGE),
        (("--file", "bad.toml"), USAGE),
        (("--cost-file", "card.toml"), USAGE),
        (("--by", "colour"), USAGE),
        (("--since", "now", "--until", "-1d"), USAGE),
    ],
)
def test_what_is_not_clear_is_refused(weir: Weir, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """One line that says what to write."""
    (tmp_path / "card.toml").write_text('[[margin]]\nmargin = "30%"\n')
    (tmp_path / "bad.toml").write_text("[[margin]]\nmargin = 0.3\n")
    answer = weir("simulate", *options)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("weir: ")
    assert answer.err.count("\n") == 1
