"""`weir export`: files of events and of costs in FOCUS, whose sums are those of the reports, to the picounit."""

import csv
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import ids
from billing.clock import HOUR_US, Instant, to_datetime
from billing.ledger import accounts, events, key_tags, migrate, partitions, versions
from billing.ledger.database import Database
from billing.ledger.events import credit
from billing.pricing.quote import Quote
from billing.usage import Outcome
from tests.acceptance.commands import DONE, NOT_FOUND, USAGE, Weir, runner
from tests.support import parquet_reader
from tests.tables import at, book
from tests.unit.ledger.made import event

DAY = at("2026-03-10")
NOON = at("2026-03-10T12")
BOOK = """
    cost    qwen3.5-9b  input 0.0300  cached_input 0.0100  output 0.1200  request 0.001   from 2026-01-01
    margin  global      30%                            from 2026-01-01
"""


@pytest.fixture
def quote() -> Quote:
    found = book(BOOK).quote("qwen3.5-9b", None, NOON)
    assert found is not None
    return found


@pytest.fixture
def weir(
    database_url: str, quote: Quote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Weir]:
    """acme used three requests on two days and got a correction; credit paid for a part; another customer used one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    with opened.writing() as conn:
        acme, ben = (accounts.add_customer(conn, name, None, DAY, "test").id for name in ("acme", 'Ünï, "ben"'))
        key = accounts.create_key(conn, acme, "app", None, 0, 0, 0, None, DAY, "test")[0].id
        key_tags.change(conn, key, {"team": "blue"}, (), DAY, "test")
        versions.store_quote(conn, quote)
        made = [used(quote, when, acme, key) for when in (NOON, Instant(NOON + HOUR_US), Instant(NOON + 24 * HOUR_US))]
        made.append(used(quote, NOON, ben, "key_gone", anomaly="negative"))
        refund = made[0]._replace(
            id=id_of(NOON), outcome=Outcome.ADJUSTMENT.value, adjusts=made[0].id, amount_pico=-made[0].amount_pico // 2
        )
        events.append(conn, [*made, refund], 0)
        credit(conn, made[1], 0, made[1].amount_pico)
    yield runner(capsys)
    opened.close()


def used(quote: Quote, when: Instant, customer_id: str, key_id: str, **more: Any) -> Any:
    """An event at the quote's own prices."""
    made = event(when, id=id_of(when), customer_id=customer_id, api_key_id=key_id, price_ref=quote.ref, **more)
    usage = events_usage(made)
    return made._replace(amount_pico=quote.price.charge(usage), cost_pico=quote.cost.charge(usage))


def id_of(when: Instant) -> str:
    """An id of an instant, as a request has that begins then."""
    return partitions.bound(to_datetime(when)) + ids.uuid7()[14:]


def events_usage(made: Any) -> Any:
    """The usage of an event."""
    from billing.usage import Usage

    return Usage(*(getattr(made, name) for name in Usage._fields))


def report(weir: Weir, *options: str) -> tuple[int, Decimal]:
    """Tokens and revenue of a report."""
    rows = weir("report", "margin", "--by", "model", *options, "--json").json
    return sum(row["input_tokens"] for row in rows), sum((Decimal(row["revenue"]) for row in rows), Decimal(0))


def test_events_are_written_with_every_column(weir: Weir, tmp_path: Path) -> None:
    """CSV and Parquet say the same, and both what the report does; texts with commas and quotes come back whole."""
    rows = weir("export", "events").csv
    assert len(rows) == 5
    tokens = sum(int(row["input_tokens"]) for row in rows)
    assert (tokens, sum(Decimal(row["amount"]) for row in rows)) == report(weir)
    by_name = {row["customer"]: row for row in rows}
    assert set(by_name) == {"acme", 'Ünï, "ben"'}
    mine = by_name['Ünï, "ben"']
    assert (mine["anomaly"], mine["started_at"], mine["currency"]) == ("negative", "2026-03-10T12:00:00Z", "usd")
    assert mine["first_token_at"] == "2026-03-10T12:00:00.100000Z"
    answer = weir("export", "events", "-o", "events.parquet")
    assert (answer.code, answer.out) == (DONE, "")
    packed = parquet_reader.rows((tmp_path / "events.parquet").read_bytes())
    assert [row["id"] for row in packed] == [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert [Decimal(row["amount"]).scaleb(-12) for row in packed] == [Decimal(row["amount"]) for row in rows]
    assert {row["adjusts"] for row in packed} == {None, *(row["adjusts"] for row in rows if row["adjusts"])}


def test_a_range_is_that_of_the_reports(weir: Weir, tmp_path: Path) -> None:
    """By the end of each event, its start in and its end out; days are those of a zone."""
    for options in (
        ("--since", "2026-03-11"),
        ("--until", "2026-03-10T13:00"),
        ("--customer", "acme", "--since", "2026-03-10", "--until", "2026-03-11"),
        ("--since", "2026-03-11", "--timezone", "Pacific/Auckland"),
    ):
        rows = weir("export", "events", *options).csv
        tokens = sum(int(row["input_tokens"]) for row in rows)
        assert (tokens, sum((Decimal(row["amount"]) for row in rows), Decimal(0))) == report(weir, *options), options
    assert len(weir("export", "events", "--since", "2026-03-10T12:00:02", "--format", "csv").csv) == 2
    assert weir("export", "events", "--since", "2027-01-01").out.count("\n") == 1
    for options, code in (
        (("--format", "parquet"), USAGE),
        (("--since", "now", "--until", "now"), USAGE),
        (("--customer", "nobody", "-o", "x.csv"), NOT_FOUND),
        (("-o", "none/x.csv"), USAGE),
    ):
        assert weir("export", "events", *options).code == code
    assert list(tmp_path.glob("*.csv")) == []


def test_focus_has_all_costs_to_the_picounit(weir: Weir) -> None:
    """Effective and contracted costs are the revenue; billed is that less what credit paid; each line multiplies."""
    rows = weir("export", "focus").csv
    revenue = weir("report", "revenue", "--by", "model", "--json").json[0]

    def total(name: str) -> Decimal:
        return sum((Decimal(row[name]) for row in rows), Decimal(0))

    assert total("EffectiveCost") == total("ContractedCost") == Decimal(revenue["revenue"])
    assert total("BilledCost") == Decimal(revenue["metered"])
    lines = [row for row in rows if row["PricingQuantity"]]
    for row in lines:
        assert Decimal(row["ContractedUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ContractedCost"])
        assert Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ListCost"])
    (correction,) = (row for row in rows if row["ChargeClass"] == "Correction")
    assert (correction["ChargePeriodStart"], correction["PricingQuantity"]) == ("2026-03-10T00:00:00Z", "")
    assert (correction["ConsumedQuantity"], correction["ConsumedUnit"]) == ("1.000000000000", "Requests")
    first = next(
        row for row in lines if row["BillingAccountName"] == "acme" and row["SkuMeter"] == "cached input tokens"
    )
    assert (first["ConsumedQuantity"], first["ContractedUnitPrice"]) == ("1200.000000000000", "0.000000013000")
    assert (first["BillingPeriodStart"], first["BillingPeriodEnd"]) == ("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z")
    assert (json.loads(first["Tags"]), first["SubAccountName"], first["BillingCurrency"]) == (
        {"team": "blue"},
        "app",
        "USD",
    )
    assert {row["ServiceCategory"] for row in rows} == {"AI and Machine Learning"}


def test_focus_tells_list_from_contracted_prices(weir: Weir, database_url: str, quote: Quote, tmp_path: Path) -> None:
    """A customer with a margin of its own: contracted is its price, list what others pay; what is neither is told."""
    cost = ("--input", "0.03", "--cached-input", "0.01", "--output", "0.12", "--request", "0.001")
    assert weir("cost", "set", "qwen3.5-9b", *cost, "--from", "2026-01-01", "--backdate").code == DONE
    for options in (("30%",), ("10%", "--customer", "acme")):
        assert weir("margin", "set", *options, "--from", "2026-01-01", "--backdate").code == DONE
    opened = Database(database_url)
    with opened.writing() as conn:
        acme = accounts.find_customer(conn, "acme").id
        own = versions.load_book(conn, default_margin="0%", currency="usd").quote("qwen3.5-9b", acme, NOON)
        assert own is not None
        versions.store_quote(conn, own)
        made = used(own, at("2026-04-01T12"), acme, "key_gone")
        events.append(conn, [made, made._replace(id=id_of(at("2026-04-01T12")), amount_pico=made.amount_pico - 7)], 0)
    opened.close()
    assert weir("export", "focus", "--since", "2026-04-01", "-o", "focus.csv", "--provider", "GPU Ltd").code == DONE
    with (tmp_path / "focus.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["SkuMeter"]: row for row in csv.DictReader(file)}
    output = rows["output tokens"]
    assert (output["ContractedUnitPrice"], output["ListUnitPrice"]) == ("0.000000132000", "0.000000156000")
    assert output["ProviderName"] == "GPU Ltd"
    assert (rows[""]["ChargeCategory"], rows[""]["EffectiveCost"]) == ("Adjustment", "-0.000000000007")
