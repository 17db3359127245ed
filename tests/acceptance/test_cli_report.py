"""`weir report` as an owner reads it: by whatever there is, in any zone, beside the period before, as bars and files.

The history is made of few events whose money can be summed by hand: each costs 0.00009 usd and earns 0.000117.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import ids
from billing.clock import HOUR_US, Instant
from billing.ledger import accounts, events, key_tags, migrate, plans
from billing.ledger.database import Database
from tests.acceptance.commands import DONE, NOT_FOUND, USAGE, Weir, runner
from tests.support import parquet_reader
from tests.tables import at
from tests.unit.ledger.made import event

FEB, MARCH = at("2026-02-10T12"), at("2026-03-10T12")
NIGHT = at("2026-03-10T23:30")
EACH = "0.000117000000"


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """acme: 1 request in February, 2 at a noon of March, 1 that night; ben 1 in February; carl 1 in March, at a loss.

    acme's key has two tags, and the plan gold from half past twelve of that noon on.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    with opened.writing() as conn:
        acme, ben, carl = (accounts.add_customer(conn, name, None, FEB, "test").id for name in ("acme", "ben", "carl"))
        key = accounts.create_key(conn, acme, "app", None, 0, 0, 0, None, FEB, "test")[0].id
        key_tags.change(conn, key, {"team": "blue", "site": "kiel"}, (), FEB, "test")
        gold = plans.add(conn, "gold", FEB, "test")
        plans.assign(conn, acme, gold, Instant(MARCH + HOUR_US // 2), FEB, "test")
        mine = {"customer_id": acme, "api_key_id": key}
        made = [event(FEB, **mine), *(event(MARCH, **mine) for _ in range(2)), event(NIGHT, **mine)]
        made += [event(FEB, customer_id=ben), event(MARCH, customer_id=carl, model="b", amount_pico=45_000_000)]
        events.append(conn, [each._replace(id=ids.uuid7()) for each in made], 0)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line."""
    return runner(capsys)


def requests(weir: Weir, by: str, *options: str) -> list[tuple[object, ...]]:
    """What the rows are about, and their requests."""
    rows = weir("report", "margin", "--by", by, *options, "--json").json
    return [(*(row[name] for name in by.split(",")), row["requests"]) for row in rows]


def test_a_report_is_by_whatever_was_asked(weir: Weir) -> None:
    """Times first and in order; who has no plan or tag is null; a key counts for each of its tags."""
    assert requests(weir, "plan") == [(None, 3), ("gold", 3)]
    assert requests(weir, "tag") == [(None, 2), ("site=kiel", 4), ("team=blue", 4)]
    assert requests(weir, "month") == [("2026-02", 2), ("2026-03", 4)]
    assert requests(weir, "day") == [("2026-02-10", 2), ("2026-03-10", 4)]
    assert requests(weir, "hour", "--customer", "acme") == [
        ("2026-02-10T12:00:00Z", 1),
        ("2026-03-10T12:00:00Z", 2),
        ("2026-03-10T23:00:00Z", 1),
    ]
    assert requests(weir, "plan,month,customer") == [
        (None, "2026-02", "acme", 1),
        (None, "2026-02", "ben", 1),
        ("gold", "2026-03", "acme", 3),
        (None, "2026-03", "carl", 1),
    ]
    assert requests(weir, "tag,day,hour,model", "--since", "2026-03-01") == [
        (None, "2026-03-10", "2026-03-10T12:00:00Z", "b", 1),
        ("site=kiel", "2026-03-10", "2026-03-10T12:00:00Z", "qwen3.5-9b", 2),
        ("team=blue", "2026-03-10", "2026-03-10T12:00:00Z", "qwen3.5-9b", 2),
        ("site=kiel", "2026-03-10", "2026-03-10T23:00:00Z", "qwen3.5-9b", 1),
        ("team=blue", "2026-03-10", "2026-03-10T23:00:00Z", "qwen3.5-9b", 1),
    ]


def test_days_hours_and_dates_are_those_of_a_time_zone(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """23:30 UTC is the next day in Berlin; a date names the zone's own midnight."""
    berlin = ("--timezone", "Europe/Berlin")
    assert requests(weir, "day", "--customer", "acme", *berlin) == [
        ("2026-02-10", 1),
        ("2026-03-10", 2),
        ("2026-03-11", 1),
    ]
    assert requests(weir, "hour", "--since", "2026-03-11", *berlin) == [("2026-03-11T00:00:00+01:00", 1)]
    assert requests(weir, "month", "--until", "2026-03-11T00:00", *berlin) == [("2026-02", 2), ("2026-03", 3)]
    monkeypatch.setenv("WEIR_BILLING__TIMEZONE", "Europe/Berlin")
    assert requests(weir, "day", "--since", "2026-03-11") == [("2026-03-11", 1)]
    assert weir("usage", "--since", "2026-03-11", "--json").json[0]["requests"] == 1


def test_a_report_is_compared_with_the_period_before(weir: Weir) -> None:
    """March with February, whole months; who came or left is there, too. A day with the day before it."""
    march = ("--since", "2026-03-01", "--until", "2026-04-01", "--compare")
    found = {row["customer"]: row for row in weir("report", "margin", "--by", "customer", *march, "--json").json}
    acme = found["acme"]
    assert (acme["revenue"], acme["revenue_before"], acme["revenue_change"]) == (
        "0.000351000000",
        EACH,
        "0.000234000000",
    )
    assert (acme["margin"], acme["margin_before"], acme["revenue_change_pct"]) == (
        "0.000081000000",
        "0.000027000000",
        "200.00",
    )
    ben, carl = found["ben"], found["carl"]
    assert (ben["requests"], ben["revenue"], ben["revenue_before"]) == (0, "0.000000000000", EACH)
    assert (ben["revenue_change"], ben["revenue_change_pct"]) == ("-" + EACH, "-100.00")
    assert (carl["margin"], carl["revenue_before"], carl["revenue_change_pct"]) == (
        "-0.000045000000",
        "0.000000000000",
        None,
    )
    months = weir("report", "revenue", "--by", "month", "--compare", "--json").json
    assert [(row["month"], row["revenue"], row["revenue_before"]) for row in months] == [
        ("2026-02", "0.000234000000", "0.000000000000"),
        ("2026-03", "0.000396000000", "0.000234000000"),
    ]
    nights = weir(
        "report", "margin", "--by", "day", "--since", "2026-03-11", "--compare", "--timezone", "Europe/Berlin"
    )
    assert "0.000279000000" in nights.out  # the day before, which the report itself does not show
    hours = weir("report", "margin", "--by", "day,hour", "--since", "2026-03-10T13", "--compare", "--json").json
    assert [(row["hour"], row["revenue_before"]) for row in hours] == [("2026-03-10T23:00:00Z", "0.000000000000")]


def test_revenue_is_told_with_its_share(weir: Weir) -> None:
    """By hand: 4, 1 of 0.000117 and 0.000045 of 0.00063 usd; nothing was paid by credit."""
    rows = weir("report", "revenue", "--by", "customer", "--json").json
    assert [(row["customer"], row["revenue"], row["share_pct"]) for row in rows] == [
        ("acme", "0.000468000000", "74.29"),
        ("ben", EACH, "18.57"),
        ("carl", "0.000045000000", "7.14"),
    ]
    assert {(row["from_credit"], row["metered"] == row["revenue"]) for row in rows} == {("0.000000000000", True)}


def test_a_table_has_its_total_and_a_chart_its_bars(weir: Weir) -> None:
    """Of three requests at 23 % margin 12 cells are longest; a loss is drawn behind what was earned."""
    table = weir("report", "margin", "--by", "customer").out
    assert "image" not in table, "what nobody has used has no column"
    assert "image_input_tokens" in weir("report", "margin", "--by", "customer", "--csv").out
    assert table.splitlines()[-1].split()[:2] == ["total", "6"]
    assert "0.000630000000" in table
    assert "total" not in weir("report", "margin", "--by", "tag").out  # its rows share usage
    chart = weir("report", "margin", "--by", "customer", "--chart").out.splitlines()
    assert chart == [
        "revenue from the beginning to now",
        "acme " + "░" * 37 + "█" * 11 + " 0.000468000000 usd, margin 23.08%",
        "ben  " + "░" * 9 + "█" * 3 + " 0.000117000000 usd, margin 23.08%",
        "carl " + "░" * 5 + "▓" * 4 + " 0.000045000000 usd, margin -100.00%",
    ]
    assert weir("report", "revenue", "--since", "2026-05-01", "--chart").out == "nothing to show\n"
    rows = weir("report", "margin", "--by", "month", "--csv").csv
    assert [(row["month"], row["revenue"]) for row in rows] == [
        ("2026-02", "0.000234000000"),
        ("2026-03", "0.000396000000"),
    ]


def test_a_parquet_file_has_the_rows_with_exact_money(weir: Weir, tmp_path: Path) -> None:
    """Numbers are numbers in it: tokens 64 bits, money decimals of 12 places, percentages of two."""
    answer = weir("report", "margin", "--by", "customer", "--parquet", "report.parquet")
    assert (answer.code, answer.out, answer.err) == (DONE, "", "3 rows in report.parquet\n")
    rows = parquet_reader.rows((tmp_path / "report.parquet").read_bytes())
    acme, _, carl = rows
    assert (acme["customer"], acme["requests"], acme["revenue"], acme["margin_pct"]) == (
        "acme",
        4,
        468_000_000,
        2_308,
    )
    assert (carl["margin"], carl["margin_pct"], carl["currency"]) == (-45_000_000, -10_000, "usd")
    assert [path.name for path in tmp_path.glob("*.parquet*")] == ["report.parquet"]


def test_what_is_not_clear_is_refused(weir: Weir, tmp_path: Path) -> None:
    """One line that says what to write, and nothing made."""
    for options, code, said in (
        (("--by", "colour"), USAGE, "choose among model, customer, key, day, hour, month, plan, tag"),
        (("--timezone", "Mars/Base"), USAGE, "no time zone"),
        (("--timezone", "../UTC"), USAGE, "no time zone"),
        (("--compare",), USAGE, "--compare needs --since"),
        (("--since", "0001-01-01", "--timezone", "Asia/Tokyo"), USAGE, "outside the years"),
        (("--customer", "nobody"), NOT_FOUND, "nobody"),
        (("--parquet", "missing/report.parquet"), USAGE, "can not be written"),
    ):
        answer = weir("report", "margin", *options)
        assert (answer.code, answer.out, answer.err.count("\n")) == (code, "", 1), options
        assert said in answer.err
    assert list(tmp_path.glob("*parquet*")) == []


def test_keys_get_tags_and_lose_them(weir: Weir) -> None:
    """Reports follow at once, for the past, too."""
    key = weir("key", "create", "ben", "--tag", "team=red", "--json").json
    assert key["tags"] == {"team": "red"}
    changed = weir("key", "set", key["id"], "--tag", "team=green", "--tag", "env=test", "--json").json
    assert changed["tags"] == {"env": "test", "team": "green"}
    assert weir("key", "set", key["id"], "--untag", "env", "--json").json["tags"] == {"team": "green"}
    assert [each["tags"] for each in weir("key", "list", "--customer", "ben", "--json").json] == [{"team": "green"}]
    for options, code in (
        (("--tag", "team"), USAGE),
        (("--tag", "a=1", "--tag", "a=2"), USAGE),
        (("--tag", "a=1,2"), USAGE),
        (("--untag", "env"), NOT_FOUND),
        (tuple(word for n in range(20) for word in ("--tag", f"t{n}=x")), USAGE),
    ):
        assert weir("key", "set", key["id"], *options).code == code, options
    assert weir("key", "set", "key_none", "--tag", "a=1").code == NOT_FOUND
    assert weir("key", "set", key["id"], "--tag", "team=blue", "--untag", "team", "--json").json["tags"] == {
        "team": "blue"
    }
