"""`weir cost` and `weir margin` as an admin and a script use them: what is printed, and what is refused."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock
from billing.cli import app
from billing.clock import DAY_US, Instant, instant_text
from billing.errors import RefusedError
from billing.ledger import accounts, facts, migrate, schema, versions
from billing.ledger.database import Database

DONE, USAGE, NOT_FOUND, REFUSED = 0, 2, 3, 4
MODEL = "qwen3.5-9b"
COST = ("cost", "set", MODEL, "--input", "0.03", "--output", "0.12")


@dataclass(frozen=True)
class Answer:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output as JSON; the command must have succeeded."""
        assert self.code == DONE, self.err
        return json.loads(self.out)

    @property
    def csv(self) -> list[dict[str, str]]:
        """The output as CSV."""
        assert self.code == DONE, self.err
        return list(csv.DictReader(io.StringIO(self.out)))


Weir = Callable[..., Answer]


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands, with the customer acme."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")
    database = Database(database_url)
    migrate.upgrade(database)
    with database.writing() as conn:
        accounts.add_customer(conn, "acme", None, clock.now(), "test")
    yield database
    database.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = app.run(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def in_days(days: int) -> str:
    """The instant so many days from now."""
    return instant_text(Instant(clock.now() + days * DAY_US))


def test_a_cost_that_was_set_is_returned_and_listed(weir: Weir) -> None:
    """JSON has plain decimals and the currency beside them."""
    created = weir(*COST, "--cached-input", "0.003", "--reasoning", "0.24", "--request", "0.0001", "--json").json

    assert created["model"] == MODEL
    assert (created["input"], created["cached_input"]) == ("0.0300", "0.0030")
    assert (created["output"], created["reasoning"]) == ("0.1200", "0.2400")
    assert (created["request"], created["currency"]) == ("0.0001", "usd")
    assert (created["state"], created["effective_until"]) == ("in force", None)
    assert created["effective_from"] == created["recorded_at"]
    assert weir("cost", "list", "--json").json == [created]
    assert weir("cost", "list", "another", "--json").json == []


def test_a_part_that_was_not_given_has_no_rate_of_its_own(weir: Weir) -> None:
    """It is null in JSON, and costs what its whole does."""
    created = weir(*COST, "--json").json
    explained = weir("margin", "explain", MODEL, "--json").json

    assert (created["cached_input"], created["reasoning"], created["request"]) == (None, None, "0")
    assert explained["cost"] == {
        "input": "0.0300",
        "cached_input": "0.0300",
        "image_input": "0.0300",
        "audio_input": "0.0300",
        "output": "0.1200",
        "reasoning": "0.1200",
        "request": "0",
    }


def test_a_person_reads_the_currency_at_each_amount(weir: Weir) -> None:
    """And sees at once what customers will pay, and what was rounded."""
    shown = weir("cost", "set", MODEL, "--input", "0.0375", "--output", "0.123457")

    assert shown.code == DONE
    assert "0.0375 usd" in shown.out
    assert "Price under margin 30%" in shown.out
    prices = {line.split()[0]: line for line in shown.out.splitlines() if "1M tokens" in line}
    assert "0.04875 usd" in prices["input"]
    assert "rounded" not in prices["input"]
    assert "0.160494 usd" in prices["output"]  # 0.1604941
    assert "rounded" in prices["output"]
    listed = weir("cost", "list")
    assert "0.0375 usd" in listed.out
    assert "in force" in listed.out


def test_a_cost_with_a_start_to_come_is_scheduled(weir: Weir) -> None:
    """Until then the old one holds, and it says until when."""
    weir(*COST)
    begins = in_days(7)
    later = weir("cost", "set", MODEL, "--input", "0.06", "--output", "0.24", "--from", begins, "--json").json

    assert later["state"] == "scheduled"
    rows = weir("cost", "list", MODEL, "--csv").csv
    assert [(row["input"], row["state"], row["effective_until"]) for row in rows] == [
        ("0.0300", "in force", later["effective_from"]),
        ("0.0600", "scheduled", ""),
    ]
    assert rows[0]["currency"] == "usd"
    assert [row["input"] for row in weir("cost", "list", "--at", begins, "--json").json] == ["0.0600"]
    assert [row["input"] for row in weir("cost", "list", "--at", "now", "--json").json] == ["0.0300"]
    assert weir("cost", "list", "--at", "-1d", "--json").json == []
    explained = weir("margin", "explain", MODEL, "--json").json
    assert explained["next_change"] == later["effective_from"]


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        ("0.00000003", "per token, which is 0.0300 per 1M: write --input 0.0300"),
        ("0.00005", "per token, which is 50.0000 per 1M: write --input 50.0000"),
        ("0", "--force"),
        ("1000.01", "--force"),
        ("9001", "dearest rate"),
    ],
)
def test_a_rate_that_looks_like_a_slip_is_refused_with_what_to_do(weir: Weir, rate: str, says: str) -> None:
    """Exit 4, one line, and nothing is set."""
    answer = weir("cost", "set", MODEL, "--input", rate, "--output", "0.12")

    assert answer.code == REFUSED
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert answer.out == ""
    assert weir("cost", "list", "--json").json == []


def test_an_unusual_rate_is_taken_by_force(weir: Weir) -> None:
    """Zero is a cost then, and its price is zero: said by the admin, not by accident."""
    free = ("cost", "set", "free", "--input", "0", "--output", "0")

    assert weir(*free).code == REFUSED
    assert weir("margin", "explain", "free").code == NOT_FOUND
    assert weir(*free, "--force", "--json").json["input"] == "0.0000"
    assert set(weir("margin", "explain", "free", "--json").json["price"].values()) == {"0.0000", "0"}
    assert weir("cost", "set", "dear", "--input", "2000", "--output", "4000", "--force").code == DONE


@pytest.mark.parametrize(
    "arguments",
    [
        ("--input", "0.1234567", "--output", "0.12"),
        ("--input", "abc", "--output", "0.12"),
        ("--input", "-0.03", "--output", "0.12"),
        ("--input", "0.03"),
        ("--input", "0.03", "--output", "0.12", "--request", "-1"),
        ("--input", "0.03", "--output", "0.12", "--from", "tomorrow"),
        ("--input", "0.03", "--output", "0.12", "--from", "0001-01-01"),
    ],
)
def test_words_that_make_no_sense_are_a_usage_error(weir: Weir, arguments: tuple[str, ...]) -> None:
    """Exit 2 and one line."""
    answer = weir("cost", "set", MODEL, *arguments)

    assert answer.code == USAGE
    assert answer.err.count("\n") == 1


def test_models_have_exact_names(weir: Weir) -> None:
    """A pattern would be a price that never applies."""
    assert weir("cost", "set", "qwen*", "--input", "0.03", "--output", "0.12").code == USAGE
    assert weir("margin", "set", "30%", "--model", "qwen*").code == USAGE
    weir(*COST)
    assert weir("margin", "explain", MODEL.upper()).code == NOT_FOUND


def test_the_past_is_reached_only_when_asked_for(weir: Weir) -> None:
    """For costs, margins and removals alike; the help says that history keeps its prices."""
    assert weir(*COST, "--from", "-1h").code == REFUSED
    assert "--backdate" in weir(*COST, "--from", "-1h").err
    assert weir(*COST, "--from", "-2d", "--backdate", "--json").json["state"] == "in force"
    assert weir("margin", "set", "40%", "--from", "-1h").code == REFUSED
    assert weir("margin", "set", "40%", "--from", "-1d", "--backdate").code == DONE
    assert weir("margin", "remove", "--from", "-1h").code == REFUSED
    assert weir("margin", "remove", "--from", "-1h", "--backdate").code == DONE

    margins = [
        weir("margin", "explain", MODEL, "--at", instant, "--json").json["margin"] for instant in ("-36h", "-2h", "now")
    ]
    assert margins == ["30%", "40%", "30%"]
    assert "history keeps its prices" in weir("cost", "set", "--help").out
    assert "history keeps its prices" in weir("margin", "set", "--help").out


def test_a_backdated_cost_does_not_touch_what_an_event_was_priced_with(weir: Weir, database: Database) -> None:
    """The quote that the event names stays as it was stored."""
    weir(*COST)
    with database.writing() as conn:
        book = versions.load_book(conn, default_margin="30%", currency="usd")
        quote = book.quote(MODEL, None, clock.now())
        assert quote is not None
        versions.store_quote(conn, quote)

    weir("cost", "set", MODEL, "--input", "9", "--output", "9", "--from", "-30d", "--backdate")

    with database.reading() as conn:
        assert versions.load_quote(conn, quote.ref) == quote


def test_the_most_specific_margin_wins_and_says_why(weir: Weir) -> None:
    """From the default over all scopes; customers by name or id."""
    weir(*COST)
    steps = [
        ((), "30%", "default"),
        (("10%",), "10%", "global"),
        (("20%", "--model", MODEL), "20%", "model"),
        (("margin:40%", "--customer", "acme"), "margin:40%", "customer"),
        (("12.5%", "--model", MODEL, "--customer", "acme"), "12.5%", "customer+model"),
    ]
    for arguments, expected, scope in steps:
        if arguments:
            assert weir("margin", "set", *arguments, "--json").json["scope"] == scope
        explained = weir("margin", "explain", MODEL, "--customer", "acme", "--json").json
        winners = [rule for rule in explained["rules"] if rule["verdict"] == "wins"]
        assert explained["margin"] == expected
        assert [(rule["scope"], rule["margin"]) for rule in winners] == [(scope, expected)]
        assert explained["margin_rule"] == winners[0]["id"]

    by_id = weir("margin", "explain", MODEL, "--customer", explained["customer_id"], "--json").json
    assert by_id["price"] == explained["price"]
    assert weir("margin", "explain", MODEL, "--json").json["margin"] == "20%"


def test_an_explanation_shows_cost_margin_and_price_of_every_unit(weir: Weir) -> None:
    """Worked out by hand: the cost divided by 0.6, rounded half-up to 6 decimals."""
    weir("cost", "set", MODEL, "--input", "0.05", "--output", "0.12", "--request", "0.0001")
    weir("margin", "set", "margin:40%", "--customer", "acme")

    explained = weir("margin", "explain", MODEL, "--customer", "acme", "--json").json

    assert explained["customer"] == "acme"
    assert explained["currency"] == "usd"
    assert explained["price"] == {
        "input": "0.083333",
        "cached_input": "0.083333",
        "image_input": "0.083333",
        "audio_input": "0.083333",
        "output": "0.2000",
        "reasoning": "0.2000",
        "request": "0.000166666667",
    }
    assert explained["rounded"] == ["input", "cached_input", "request"]
    shown = weir("margin", "explain", MODEL, "--customer", "acme").out
    assert "0.083333 usd" in shown
    assert "the most specific rule in force" in shown
    rules = weir("margin", "explain", MODEL, "--customer", "acme", "--csv").csv
    assert [(rule["verdict"], rule["scope"], rule["margin"]) for rule in rules] == [
        ("wins", "customer", "margin:40%"),
        ("overruled", "default", "30%"),
    ]


def test_a_model_without_a_cost_is_not_found_and_says_what_to_do(weir: Weir) -> None:
    """It is refused to clients; a cost that is scheduled is mentioned."""
    weir("cost", "set", MODEL, "--input", "0.03", "--output", "0.12", "--from", "+1d")

    answer = weir("margin", "explain", MODEL)

    assert answer.code == NOT_FOUND
    assert f"weir cost set {MODEL} --input R --output R" in answer.err
    assert "its first begins at" in answer.err
    assert answer.err.count("\n") == 1


def test_a_margin_with_a_start_to_come_is_scheduled(weir: Weir) -> None:
    """And its removal can be scheduled behind it."""
    weir(*COST)
    rule = weir("margin", "set", "50%", "--customer", "acme", "--from", in_days(1), "--json").json
    weir("margin", "remove", "--customer", "acme", "--from", in_days(3))

    def margin_in(days: int) -> str:
        answer = weir("margin", "explain", MODEL, "--customer", "acme", "--at", f"+{days}d", "--json")
        return str(answer.json["margin"])

    assert rule["state"] == "scheduled"
    assert [margin_in(days) for days in (0, 2, 4)] == ["30%", "50%", "30%"]


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("-10%", REFUSED, "--allow-loss"),
        ("-0.5%", REFUSED, "--allow-loss"),
        ("margin:-10%", REFUSED, "--allow-loss"),
        ("margin:100%", REFUSED, "below 100%"),
        ("3000%", REFUSED, "--force"),
        ("30", USAGE, "write 30%"),
        ("0.3", USAGE, "write 30%"),
        ("30.00001%", USAGE, "4 decimals"),
        ("--mdoel", USAGE, "write 30%"),
    ],
)
def test_a_margin_that_makes_no_sense_is_refused_with_what_to_do(weir: Weir, text: str, code: int, says: str) -> None:
    """One line, and no rule is made."""
    answer = weir("margin", "set", text)

    assert (answer.code, answer.err.count("\n")) == (code, 1)
    assert says in answer.err
    assert [row["scope"] for row in weir("margin", "list", "--json").json] == ["default"]


def test_a_loss_is_taken_when_it_is_allowed(weir: Weir) -> None:
    """A price below cost, but never one of 0."""
    weir(*COST)

    assert weir("margin", "set", "-10%", "--allow-loss", "--json").json["allow_loss"] is True
    assert weir("margin", "explain", MODEL, "--json").json["price"]["input"] == "0.0270"
    assert weir("margin", "set", "-100%", "--allow-loss").code == REFUSED
    assert weir("margin", "set", "3000%", "--force", "--json").json["margin"] == "3000%"


def test_all_margins_are_listed_with_the_default(weir: Weir) -> None:
    """Past and scheduled ones too; who they are for, and where they stand."""
    weir("margin", "set", "10%")
    weir("margin", "set", "11%")
    weir("margin", "set", "20%", "--model", MODEL, "--from", "+1d")
    weir("margin", "set", "40%", "--customer", "acme")
    weir("margin", "remove", "--customer", "acme")

    rows = weir("margin", "list", "--csv").csv

    assert [(row["scope"], row["customer"], row["margin"], row["state"]) for row in rows] == [
        ("global", "", "10%", "replaced"),
        ("global", "", "11%", "in force"),
        ("model", "", "20%", "scheduled"),
        ("customer", "acme", "40%", "replaced"),
        ("customer", "acme", "none", "in force"),
        ("default", "", "30%", "replaced"),
    ]
    assert "in force" in weir("margin", "list").out


def test_a_removed_global_rule_gives_way_to_the_default(weir: Weir) -> None:
    """Which holds again while there is no global rule."""
    weir(*COST)
    weir("margin", "set", "10%")

    removed = weir("margin", "remove", "--json").json

    assert (removed["scope"], removed["margin"]) == ("global", "none")
    assert weir("margin", "explain", MODEL, "--json").json["margin"] == "30%"
    assert [row["state"] for row in weir("margin", "list", "--json").json] == [
        "replaced",
        "in force",
        "in force",
    ]
    assert weir("margin", "remove").code == NOT_FOUND


def test_a_person_sees_what_a_margin_makes_of_the_prices(weir: Weir) -> None:
    """Of each model that it decides; and is told when there is none yet."""
    empty = weir("margin", "set", "margin:40%", "--model", MODEL)
    weir("cost", "set", MODEL, "--input", "0.05", "--output", "0.12")
    full = weir("margin", "set", "margin:40%", "--model", MODEL)

    assert "No model under this rule has a cost yet" in empty.out
    assert "0.083333 usd (rounded)" in full.out
    assert "0.2000 usd" in full.out


def test_an_unknown_customer_is_not_found(weir: Weir) -> None:
    """For each command that names one."""
    weir(*COST)

    assert weir("margin", "set", "30%", "--customer", "nobody").code == NOT_FOUND
    assert weir("margin", "remove", "--customer", "nobody").code == NOT_FOUND
    assert weir("margin", "explain", MODEL, "--customer", "nobody").code == NOT_FOUND


def test_the_log_says_who_changed_a_price(weir: Weir, database: Database) -> None:
    """The admin's login, the version and what it was."""
    created = weir(*COST, "--json").json
    rule = weir("margin", "set", "30%", "--json").json

    log = schema.audit_log.c
    with database.reading() as conn:
        rows = list(conn.execute(sa.select(log.actor, log.action, log.subject).order_by(log.id)))
    assert [(row.action, row.subject) for row in rows][-2:] == [
        ("cost.set", created["id"]),
        ("margin.set", rule["id"]),
    ]
    assert all(row.actor.startswith("cli:") for row in rows[-2:])
    assert weir(*COST, "--reason", "new card", "--actor", "anna").code == DONE
    with database.reading() as conn:
        last = conn.execute(sa.select(log.actor, log.details).order_by(log.id.desc()).limit(1)).one()
    assert (last.actor, json.loads(last.details)["reason"]) == ("anna", "new card")


def test_the_first_rate_settles_the_ledgers_currency_and_another_is_refused(
    weir: Weir, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates carry no currency: 0.03 usd must not become 0.03 jpy by a word in weir.toml. The old word works again."""
    assert weir(*COST).code == DONE
    for currency, code in (("jpy", REFUSED), ("usd", DONE)):
        monkeypatch.setenv("WEIR_BILLING__CURRENCY", currency)
        for words in (COST, ("cost", "list"), ("usage",), ("credit", "grant", "acme", "5")):
            answer = weir(*words)
            assert answer.code == code, words
            assert code == DONE or "this ledger is in usd" in answer.err
    with database.reading() as conn, pytest.raises(RefusedError, match="in usd"):
        facts.settle_currency(conn, "jpy", clock.now())
