"""The owner of a machine: enters it, sees what models cost on it, gets rates, and learns why books and cost differ."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock
from billing.clock import HOUR_US, SECOND_US, Instant, hour_start, instant_text
from billing.ledger import events, migrate, proof, schema
from billing.ledger.database import Database
from billing.usage import UsageEvent
from tests.acceptance.commands import DONE, NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.unit.ledger.made import event

MODEL = "qwen3.5-9b"
RENTED = ("--rent", "0.36", "--idle-watts", "0", "--busy-watts", "1000", "--upstream", "local")
CONFIG = '[[upstreams]]\nname = "local"\nurl = "http://127.0.0.1:1"\n[billing]\ntimezone = "Asia/Kolkata"\n'


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("weir.toml").write_text(CONFIG)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "300")
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line."""
    assert database.url
    return runner(capsys)


def served(at: int, prompt_s: int, generation_s: int, **given: object) -> UsageEvent:
    """Requests to the upstream `local`, as one: 1.1 million tokens in, most of them cached, 0.5 million out."""
    return event(
        Instant(at + 60 * SECOND_US),
        input_tokens=1_100_000,
        cached_input_tokens=1_000_000,
        output_tokens=500_000,
        cost_pico=2 * 10**11,
        prompt_us=prompt_s * SECOND_US,
        generation_us=generation_s * SECOND_US,
        **given,
    )


def test_an_owner_learns_what_tokens_cost_and_why_it_is_not_what_was_booked(weir: Weir, database: Database) -> None:
    """0.36 an hour and 0.36 for each busy hour's kWh; the sums by hand."""
    first = Instant(hour_start(clock.now()) - 4 * HOUR_US)
    second, third = instant_text(Instant(first + HOUR_US)), instant_text(Instant(first + 2 * HOUR_US))
    since = instant_text(first)
    assert weir("cost", "hardware", "add", "box", *RENTED, "--from", since, "--backdate").code == DONE
    assert weir("cost", "hardware", "tariff", "0.36", "--from", since, "--backdate").code == DONE
    with database.writing() as conn:
        events.append(conn, [served(first, 150, 450), served(first, 300, 900)], 1)
        events.append(conn, [served(first + HOUR_US, 900, 2_700), served(first, 0, 0, upstream="elsewhere")], 2)
    with database.reading() as conn:
        assert [each for each in proof.run(conn) if "time" in each.audit] == []

    hour = ("--since", since, "--until", second)
    work, idle, total = weir("cost", "actual", *hour, "--by", "model", "--json").json
    assert (work["model"], work["requests"], work["output_tokens"]) == (MODEL, 2, 1_000_000)
    assert (work["cost"], idle["cost"], total["cost"]) == ("0.360000000000", "0.180000000000", "0.540000000000")
    assert (work["input"], work["cached_input"], work["output"]) == ("0.2250", "0.0225", "0.2700")
    assert (work["time_s"], idle["time_s"], idle["used_pct"]) == ("1800.000", "1800.000", "50.00")
    by_day = weir("cost", "actual", "--since", since, "--until", third, "--json").json
    assert sum(int(row["cost"].replace(".", "")) for row in by_day[:-1]) == 126 * 10**10
    assert {row["kind"] for row in by_day} == {"work", "idle", "total"}
    assert "0.200000000000 usd were booked for upstreams that run on no machine" in weir("cost", "actual", *hour).out

    rows = weir("report", "variance", "--since", second, "--until", third, "--json").json
    found = {row["kind"]: row for row in rows}
    parts = ("standard", "actual", "difference", "efficiency", "volume", "price", "idle")
    because = ["0.200", "0.720", "0.520", "0.540", "-0.02", "0.000", "0.000"]  # half the tokens in twice the time
    assert [found["work"][name][:5] for name in parts] == [found["total"][name][:5] for name in parts] == because
    (alone, apart, _) = weir("report", "variance", *hour, "--by", "day,machine", "--json").json
    assert [alone[name][:5] for name in ("volume", "efficiency", "price")] == ["-0.04", "0.000", "0.000"]
    assert (apart["machine"], apart["idle"], apart["standard"]) == ("box", "0.180000000000", "0.000000000000")

    rates = weir("cost", "suggest", MODEL, "--days", "1", "--utilisation", "50%", "--json").json
    assert (rates["cost"], rates["utilisation_pct"]) == ("1.080000000000", "50.00")
    assert (rates["input"], rates["cached_input"], rates["output"]) == ("0.6750", "0.0675", "0.8100")
    assert weir(*shlex.split(rates["command"])[1:]).code == DONE
    (listed,) = weir("cost", "list", MODEL, "--json").json
    assert (listed["input"], listed["cached_input"], listed["output"]) == ("0.6750", "0.0675", "0.8100")
    with database.reading() as conn:
        details = conn.execute(sa.select(schema.audit_log.c.details).order_by(schema.audit_log.c.id.desc())).scalars()
        assert json.loads(next(iter(details)))["reason"].startswith("suggested from 1 days until")
    assert weir("cost", "suggest", "gpt").code == NOT_FOUND
    assert weir("cost", "suggest", MODEL, "--utilisation", "0%").code == USAGE


def test_a_machine_changes_and_ends_as_dated_versions(weir: Weir, database: Database) -> None:
    """What is not given stays; who and why is in the log; an upstream is on one machine at a time."""
    hardware = ("cost", "hardware")
    bought = weir(
        *hardware, "add", "box", "--price", "2190", "--life", "1y", "--watts", "300.5", "--upstream", "local", "--json"
    )
    assert (bought.json["price"], bought.json["life_hours"], bought.json["idle_watts"]) == ("2190", 8_760, "300.5")
    changed = weir(
        *hardware,
        "set",
        "box",
        "--busy-watts",
        "450",
        "--from",
        "+2h",
        "--actor",
        "anna",
        "--reason",
        "new card",
        "--json",
    ).json
    assert (changed["idle_watts"], changed["busy_watts"], changed["bought_at"]) == (
        "300.5",
        "450",
        bought.json["bought_at"],
    )
    assert weir(*hardware, "add", "box", "--rent", "1", "--upstream", "local").code == REFUSED
    shared = weir(*hardware, "add", "other", "--rent", "1", "--upstream", "local")
    assert (shared.code, "local runs on box" in shared.err) == (REFUSED, True)
    assert weir(*hardware, "remove", "box", "--from", "+3h").code == DONE
    assert weir(*hardware, "add", "other", "--rent", "1", "--upstream", "local", "--from", "+3h").code == DONE
    unknown = weir(*hardware, "add", "third", "--rent", "1", "--upstream", "locla")
    assert (unknown.code, "weir.toml has no upstream 'locla' (it has local)" in unknown.err) == (REFUSED, True)
    assert [row["state"] for row in weir(*hardware, "list", "--json").json] == [
        "in force",
        "scheduled",
        "removed",
        "scheduled",
    ]
    assert [row["name"] for row in weir(*hardware, "list", "--at", "+4h", "--json").json] == ["other"]
    for wrong, code in (
        (("add", "x", "--upstream", "local"), USAGE),
        (("add", "x", "--price", "1", "--rent", "1", "--upstream", "local"), USAGE),
        (("add", "x", "--price", "9000001", "--upstream", "local"), REFUSED),
        (("add", "x", "--rent", "-1", "--upstream", "local"), USAGE),
        (("add", "x", "--rent", "1"), USAGE),
        (("set", "nobody", "--watts", "1"), NOT_FOUND),
        (("tariff", "0.3", "--from", "-1h"), REFUSED),
        (("tariff", "0.3", "--machine", "nobody"), NOT_FOUND),
        (("tariff", "0.3", "--hours", "22-25=1"), USAGE),
    ):
        assert weir(*hardware, *wrong).code == code, wrong
    with database.reading() as conn:
        log = schema.audit_log.c
        rows = conn.execute(
            sa.select(log.action, log.actor, log.details).where(log.action.like("machine.%")).order_by(log.id)
        ).all()
    assert [row.action for row in rows] == ["machine.set", "machine.set", "machine.remove", "machine.set"]
    assert (rows[1].actor, json.loads(rows[1].details)["reason"]) == ("anna", "new card")


def test_power_is_measured_and_its_price_varies(weir: Weir, tmp_path: Path) -> None:
    """Samples of an hour count in place of the watts; the same file twice is one; a contradiction changes nothing."""
    start = Instant(hour_start(clock.now()) - 2 * HOUR_US)
    since, until = instant_text(start), instant_text(Instant(start + HOUR_US))
    assert weir("cost", "hardware", "add", "box", *RENTED, "--from", since, "--backdate").code == DONE
    night = weir(
        "cost", "hardware", "tariff", "0.4", "--hours", "0-24=0.2", "--from", since, "--backdate", "--json"
    ).json
    assert (night["kwh"], night["timezone"]) == ("0.2", "Asia/Kolkata")
    file = tmp_path / "power.csv"
    lines = [
        f"{instant_text(Instant(start + minute * 60 * SECOND_US))},{watts}"
        for minute, watts in ((0, "200"), (30, "400.0"))
    ]
    file.write_text("\n".join(["instant,watts", *lines]))
    for added in (2, 0):
        assert weir("cost", "hardware", "import", "box", str(file), "--json").json == {
            "machine": "box",
            "samples": 2,
            "added": added,
        }
    (idle, _) = weir("cost", "actual", "--since", since, "--until", until, "--by", "machine", "--json").json
    assert idle["cost"] == "0.420000000000", "0.36 of rent, and 300 W at 0.2"
    file.write_text(f"{since},201\n")
    refused = weir("cost", "hardware", "import", "box", str(file))
    assert (refused.code, "is known to have drawn 200 W" in refused.err) == (REFUSED, True)
    file.write_text("yesterday,201\n")
    assert weir("cost", "hardware", "import", "box", str(file)).code == USAGE
    assert weir("cost", "hardware", "import", "nobody", str(file)).code == USAGE
    (listed,) = weir("cost", "hardware", "tariff", "--json").json
    assert (listed["state"], listed["machine"]) == ("in force", None)
    assert weir("cost", "actual", "--json").json[-1]["kind"] == "total"
