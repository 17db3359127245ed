"""`weir credit` and prepaid customers, as an admin types them."""

import json
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from billing import clock
from billing.cli import app, credit
from billing.credit.holds import Part
from billing.ledger import charges, leases
from billing.ledger.charges import Charge
from billing.ledger.database import Database
from billing.money import Pico
from tests.acceptance.commands import DONE, NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.unit.ledger.made import event

UTC = ZoneInfo("UTC")


@pytest.fixture
def weir(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str
) -> Weir:
    """`weir` on a fresh database, on each engine in turn, with a prepaid customer."""
    (tmp_path / "weir.toml").write_text(f'[database]\nurl = "{database_url}"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    if "credit" not in app.root.commands:
        app.root.add_command(credit.credit)
    run = runner(capsys)
    assert run("db", "upgrade").code == DONE
    assert run("customer", "add", "acme", "--prepaid").code == DONE
    return run


def test_a_customer_is_prepaid_if_it_was_added_so(weir: Weir) -> None:
    weir("customer", "add", "postpaid")
    prepaid = {row["name"]: row["prepaid"] for row in weir("customer", "list", "--json").json}
    assert prepaid == {"acme": True, "postpaid": False}
    assert weir("customer", "add", "zeta", "--prepaid", "--json").json["prepaid"] is True


def test_credit_is_shown_as_it_was_given(weir: Weir) -> None:
    """The balance to the last decimal, and the entries with why, newest first."""
    weir("credit", "grant", "acme", "25", "--reason", "welcome")
    answer = weir("credit", "grant", "acme", "0.000000000001", "--expires", "2099-01-01")
    assert answer.code == DONE
    assert answer.out.startswith("gave 'acme' 0.000000000001 usd (credit_")
    assert answer.err == ""
    shown = weir("credit", "show", "acme", "--json").json
    assert {name: shown[name] for name in ("customer", "prepaid", "balance", "held", "available", "currency")} == {
        "customer": "acme",
        "prepaid": True,
        "balance": "25.000000000001",
        "held": "0.000000000000",
        "available": "25.000000000001",
        "currency": "usd",
    }
    newest, oldest = shown["entries"]
    assert (newest["kind"], newest["amount"], newest["expires_at"]) == (
        "grant",
        "0.000000000001",
        "2099-01-01T00:00:00Z",
    )
    assert (oldest["amount"], oldest["left"], oldest["reason"]) == ("25.000000000000", "25.000000000000", "welcome")


def test_usage_and_leases_show_as_burnt_and_held(weir: Weir, database_url: str) -> None:
    weir("credit", "grant", "acme", "10")
    shown = weir("credit", "show", "acme", "--json").json
    database = Database(database_url)
    now, cent = clock.now(), 10**10
    with database.writing() as conn:
        (added,) = leases.take(conn, shown["customer_id"], "worker", "usd", 50 * cent, 0, now, UTC).additions
        used = event(now, customer_id=shown["customer_id"], amount_pico=20 * cent, finished_at=now)
        charges.append(conn, [used], [Charge(used, (Part(added.lease_id, Pico(20 * cent)),))], 0, now)
    shown = weir("credit", "show", "acme", "--json").json
    assert (shown["balance"], shown["held"], shown["available"]) == (
        "9.800000000000",
        "0.300000000000",
        "9.500000000000",
    )
    with database.writing() as conn:
        leases.close(conn, shown["customer_id"], [added.lease_id], now)
    database.close()
    shown = weir("credit", "show", "acme", "--json").json
    assert [(entry["kind"], entry["amount"]) for entry in shown["entries"]] == [
        ("burn", "-0.200000000000"),
        ("grant", "10.000000000000"),
    ]
    past = weir("credit", "show", "acme", "--at", "-1d", "--json").json
    assert (past["balance"], past["currency"]) == ("0.000000000000", "usd")


def test_a_mistake_is_taken_back_and_stays_in_the_history(weir: Weir) -> None:
    given = weir("credit", "grant", "acme", "1000", "--json").json
    assert given["customer"] == "acme"
    answer = weir("credit", "revoke", given["id"], "--yes", "--reason", "should have been 10")
    assert answer.out == "took back 1000.000000000000 usd\n"
    shown = weir("credit", "show", "acme", "--json").json
    assert shown["balance"] == "0.000000000000"
    assert [(entry["kind"], entry["reason"]) for entry in shown["entries"]] == [
        ("reversal", "should have been 10"),
        ("grant", None),
    ]


def test_any_customer_may_hold_credit(weir: Weir) -> None:
    weir("customer", "add", "postpaid")
    assert weir("credit", "grant", "postpaid", "5").code == DONE
    assert weir("credit", "show", "postpaid", "--json").json["available"] == "5.000000000000"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("grant", "nobody", "5"), NOT_FOUND, "there is no customer 'nobody'"),
        (("grant", "acme", "0"), USAGE, "is not between 0 and 1000000000 usd"),
        (("grant", "acme", "five"), USAGE, "is not a decimal number"),
        (("grant", "acme", "5", "--expires", "-1d"), USAGE, "which is past"),
        (("grant", "acme", "5", "--priority", "101"), USAGE, "101"),
        (("revoke", "credit_none", "--yes"), NOT_FOUND, "there is no credit 'credit_none'"),
        (("show", "nobody"), NOT_FOUND, "there is no customer 'nobody'"),
    ],
)
def test_what_can_not_be_is_one_line_that_says_so(weir: Weir, words: tuple[str, ...], code: int, error: str) -> None:
    answer = weir("credit", *words)
    assert (answer.code, answer.out) == (code, "")
    assert error in answer.err
    assert answer.err.count("\n") == 1


def test_another_currency_is_refused(weir: Weir, tmp_path: Path) -> None:
    """Whoever changes `billing.currency` does not make euros of dollars."""
    weir("credit", "grant", "acme", "5")
    config = tmp_path / "weir.toml"
    config.write_text(config.read_text(encoding="utf-8") + '[billing]\ncurrency = "eur"\n', encoding="utf-8")
    answer = weir("credit", "grant", "acme", "5")
    assert answer.code == REFUSED
    assert "this ledger is in usd" in answer.err
    config.write_text(config.read_text(encoding="utf-8").replace("eur", "usd"), encoding="utf-8")
    assert json.loads(weir("credit", "show", "acme", "--json").out)["currency"] == "usd"


def test_tables_and_csv_are_for_people_and_spreadsheets(weir: Weir) -> None:
    weir("credit", "grant", "acme", "5")
    table = weir("credit", "show", "acme")
    assert table.code == DONE
    assert "balance" in table.out
    assert "entries, in usd" in table.out
    (row,) = weir("credit", "show", "acme", "--csv").csv
    assert (row["kind"], row["amount"], row["left"]) == ("grant", "5.000000000000", "5.000000000000")
