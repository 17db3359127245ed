"""`weir customer`, `weir key`, `weir usage`, `weir report` and `weir trace` as admins and scripts use them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from billing import clock, ids
from billing.clock import HOUR_US, Instant, instant_text
from billing.ledger import accounts, events, migrate, outbox, principals, schema, versions
from billing.ledger.database import Database
from billing.money import parse_amount, parse_rate
from billing.pricing.quote import Quote, UnitPrices
from billing.stripe_sync import batches
from billing.usage import UsageEvent
from tests.acceptance.commands import DONE, FAILED, NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.tables import at
from tests.unit.ledger.made import event

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
NOON = at("2026-03-01T12")


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The commands' database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line."""
    return runner(capsys)


def test_a_customer_is_added_and_shown(weir: Weir) -> None:
    """By the names that scripts rely on."""
    added = weir("customer", "add", "acme", "--email", "billing@acme.example", "--json").json
    assert added["id"].startswith("cust_")
    assert (added["name"], added["email"], added["status"]) == ("acme", "billing@acme.example", "active")
    assert RFC3339.fullmatch(added["created_at"])
    assert weir("customer", "show", "acme", "--json").json == added
    assert weir("customer", "show", added["id"], "--json").json == added
    assert weir("customer", "list", "--json").json == [added]
    assert weir("customer", "list", "--csv").csv[0]["name"] == "acme"
    assert (added["budgets"], added["prepaid"]) == ([], False)
    assert "acme" in weir("customer", "list").out
    assert "added the customer 'ben'" in weir("customer", "add", "ben").out


def test_a_customer_with_budgets_is_the_same_from_every_command(weir: Weir) -> None:
    """Its own budget and its keys', and nobody else's."""
    for name in ("acme", "ben", "carl"):
        weir("customer", "add", name)
    key = weir("key", "create", "acme", "--budget", "1", "--per", "day", "--json").json["id"]
    weir("customer", "set", "ben", "--budget", "3", "--per", "day", "--soft")
    acme = weir("customer", "set", "acme", "--budget", "2", "--per", "month", "--json").json
    assert [(held["budget"], held["per"], held["key_id"]) for held in acme["budgets"]] == [
        ("2.000000000000", "month", None),
        ("1.000000000000", "day", key),
    ]
    assert weir("customer", "show", "acme", "--json").json == acme
    assert weir("customer", "list", "--json").json[0] == acme
    assert [len(each["budgets"]) for each in weir("customer", "list", "--json").json] == [2, 1, 0]
    suspended = weir("customer", "suspend", "acme", "--json").json
    assert (suspended["status"], suspended["budgets"]) == ("suspended", acme["budgets"])
    assert weir("customer", "resume", "acme", "--json").json == acme


def test_a_table_shows_names_and_ids_as_they_are(weir: Weir) -> None:
    """Names that look like the terminal's markup too, and no id is cut in two where the output is a pipe."""
    for name in ("[/red]", "[bold]x[/bold]", "a very long name " * 10):
        added = weir("customer", "add", name, "--json").json
        for table in (weir("customer", "list").out, weir("customer", "show", name).out):
            assert name.strip() in table
            assert added["id"] in table


def test_exit_codes_tell_what_was_wrong(weir: Weir) -> None:
    """And each error is one line, whatever was in the arguments."""
    weir("customer", "add", "acme")
    for code, arguments in [
        (USAGE, ("customer", "add", "")),
        (USAGE, ("customer", "add", "a\nb")),
        (USAGE, ("customer", "add", "ben", "--email", "no address")),
        (USAGE, ("customer", "add", "ben", "--stripe", "--stripe-customer", "cus_1")),
        (USAGE, ("customer", "unknown")),
        (REFUSED, ("customer", "add", "acme")),
        (NOT_FOUND, ("customer", "show", "nobody")),
        (NOT_FOUND, ("customer", "suspend", "nobody")),
        (NOT_FOUND, ("key", "create", "nobody")),
        (NOT_FOUND, ("key", "list", "--customer", "nobody")),
        (NOT_FOUND, ("key", "revoke", "key_none")),
        (USAGE, ("key", "create", "acme", "--rpm", "-1")),
        (USAGE, ("key", "create", "acme", "--rpm", "1.5")),
        (USAGE, ("key", "create", "acme", "--models", ",")),
        (USAGE, ("key", "create", "acme", "--expires", "-1d")),
        (USAGE, ("key", "create", "acme", "--expires", "soon")),
        (NOT_FOUND, ("usage", "--customer", "nobody")),
        (USAGE, ("usage", "--by", "week")),
        (USAGE, ("usage", "--since", "yesterday")),
        (USAGE, ("report", "margin", "--since", "now", "--until", "-1d")),
        (NOT_FOUND, ("trace", ids.uuid7())),
    ]:
        answer = weir(*arguments)
        assert answer.code == code, (arguments, answer)
        assert answer.out == ""
        assert answer.err.startswith("weir: ")
        assert answer.err.count("\n") == 1


def test_without_stripe_nothing_is_half_done(weir: Weir) -> None:
    """A customer that was to be linked is not added when Stripe is not set up here."""
    for arguments in (("--stripe",), ("--stripe-customer", "cus_1")):
        answer = weir("customer", "add", "acme", *arguments)
        assert (answer.code, answer.out) == (FAILED, "")
        assert "STRIPE_API_KEY" in answer.err
    assert weir("customer", "list", "--json").json == []


def test_a_suspended_customer_says_so_until_it_is_resumed(weir: Weir) -> None:
    """With the reason, which its clients are told."""
    weir("customer", "add", "acme")
    answer = weir("customer", "suspend", "acme", "--reason", "abuse of tokens")
    assert (answer.code, answer.out) == (DONE, "suspended 'acme'\n")
    shown = weir("customer", "show", "acme", "--json").json
    assert shown["status"] == "suspended"
    assert [(held["cause"], held["reason"]) for held in shown["suspensions"]] == [("manual", "abuse of tokens")]
    assert weir("customer", "suspend", "acme").out == "'acme' was suspended already\n"
    assert weir("customer", "resume", "acme", "--json").json["status"] == "active"
    answer = weir("customer", "resume", "acme")
    assert (answer.code, answer.out) == (DONE, "'acme' was not suspended\n")


def test_resume_leaves_an_unpaid_invoice_to_its_payment(weir: Weir, database: Database) -> None:
    """It says so, and --all lifts it all the same."""
    acme = weir("customer", "add", "acme", "--json").json["id"]
    with database.writing() as conn:
        accounts.suspend(conn, acme, accounts.Cause.UNPAID, "invoice in_1 is unpaid", NOON, "stripe")
    weir("customer", "suspend", "acme")
    answer = weir("customer", "resume", "acme")
    assert (answer.code, answer.out) == (DONE, "lifted: manual\n")
    assert "'acme' is still suspended (unpaid: invoice in_1 is unpaid)" in answer.err
    answer = weir("customer", "resume", "acme")
    assert (answer.code, answer.out) == (REFUSED, "")
    assert "--all" in answer.err
    answer = weir("customer", "resume", "acme", "--all", "--reason", "paid by bank transfer")
    assert (answer.code, answer.out) == (DONE, "lifted: unpaid\n")
    assert weir("customer", "show", "acme", "--json").json["status"] == "active"


def test_a_new_keys_secret_opens_and_is_not_shown_again(weir: Weir, database: Database) -> None:
    """JSON has id, key and customer; the list has the hint alone."""
    weir("customer", "add", "acme")
    made = weir("key", "create", "acme", "--name", "app", "--models", "b,a", "--rpm", "60", "--json").json
    assert made["id"].startswith("key_")
    assert made["customer"] == "acme"
    assert (made["name"], made["models"], made["rpm"], made["tpm"]) == ("app", ["a", "b"], 60, 0)
    with database.reading() as conn:
        found = principals.load(conn, ids.key_hash(made["key"].encode()).hex())
    assert found is not None
    assert (found.key_id, found.models, found.rpm) == (made["id"], frozenset({"a", "b"}), 60)
    listed = weir("key", "list", "--json")
    assert made["key"] not in listed.out
    assert listed.json[0] == {name: value for name, value in made.items() if name != "key"}
    assert listed.json[0]["hint"] == "wk_…" + made["key"][-4:]


def test_a_script_gets_the_key_alone_on_standard_output(weir: Weir) -> None:
    """`KEY=$(weir key create acme)` works; the advice goes to standard error."""
    weir("customer", "add", "acme")
    answer = weir("key", "create", "acme")
    assert re.fullmatch(r"wk_[A-Za-z0-9_-]{43}\n", answer.out)
    assert "not shown again" in answer.err


def test_keys_are_listed_with_what_they_can_do_now(weir: Weir, database: Database) -> None:
    """Active, expired and revoked ones, of one customer or of all."""
    weir("customer", "add", "acme")
    weir("customer", "add", "ben")
    expires = instant_text(Instant(clock.now() + HOUR_US))
    active = weir("key", "create", "acme", "--expires", expires, "--json").json
    assert active["expires_at"] == expires
    revoked = weir("key", "create", "acme", "--json").json
    expired = weir("key", "create", "ben", "--expires", "+1h", "--json").json
    with database.writing() as conn:
        keys = schema.api_keys
        conn.execute(sa.update(keys).where(keys.c.id == expired["id"]).values(expires_at=NOON))
    answer = weir("key", "revoke", revoked["id"])
    assert (answer.code, answer.out) == (DONE, f"revoked {revoked['id']} ({revoked['hint']}) of 'acme'\n")
    states = {row["id"]: row["status"] for row in weir("key", "list", "--json").json}
    assert states == {active["id"]: "active", revoked["id"]: "revoked", expired["id"]: "expired"}
    of_acme = weir("key", "list", "--customer", "acme", "--csv").csv
    assert [row["id"] for row in of_acme] == [active["id"], revoked["id"]]
    again = weir("key", "revoke", revoked["id"], "--json").json
    assert again["status"] == "revoked"
    assert again["revoked_at"] == weir("key", "list", "--json").json[1]["revoked_at"]


def test_a_pasted_secret_is_not_repeated(weir: Weir) -> None:
    """Neither in the answer nor in the advice."""
    weir("customer", "add", "acme")
    secret = weir("key", "create", "acme").out.strip()
    answer = weir("key", "revoke", secret)
    assert answer.code == USAGE
    assert secret not in answer.err + answer.out


def unit_prices(*rates: str) -> UnitPrices:
    """Prices of input, cached input, output and reasoning; no fee per request."""
    first, cached, output, reasoning = map(parse_rate, rates)
    return UnitPrices(first, cached, output, reasoning, parse_amount("0"))


@pytest.fixture
def used(weir: Weir, database: Database) -> dict[str, Any]:
    """Two customers, three requests; acme's are 0.000117 usd each, ben's 0.5 usd that cost 0.8."""
    acme = weir("customer", "add", "acme", "--json").json["id"]
    ben = weir("customer", "add", "ben", "--json").json["id"]
    key = weir("key", "create", "acme", "--name", "app", "--json").json["id"]
    price = unit_prices("0.039", "0.0039", "0.156", "0.156")
    cost = unit_prices("0.03", "0.003", "0.12", "0.12")
    quote = Quote.of(
        model="qwen3.5-9b",
        currency="usd",
        cost_rate_id="cost_1",
        margin_rule_id=None,
        margin="30%",
        cost=cost,
        price=price,
    )
    loss = {"cost_pico": parse_amount("0.8"), "amount_pico": parse_amount("0.5"), "model": "qwen3.5-35b"}
    known = {"api_key_id": key, "price_ref": quote.ref}
    made = [
        event(NOON, customer_id=acme, tags='{"team": "blue"}', **known),
        event(Instant(NOON + HOUR_US), customer_id=acme, **known),
        event(at("2026-03-02T00:30"), customer_id=ben, **{**known, "api_key_id": "key_other"}, **loss),
    ]
    with database.writing() as conn:
        versions.store_quote(conn, quote)
        events.append(conn, made, 0)
    return {"acme": acme, "ben": ben, "key": key, "events": made, "quote": quote}


def test_usage_has_the_promised_fields(weir: Weir, used: dict[str, Any]) -> None:
    """By customer and model; amounts are decimal texts, tokens integers."""
    first, second = weir("usage", "--json").json
    assert first == {
        "customer": "acme",
        "customer_id": used["acme"],
        "model": "qwen3.5-9b",
        "requests": 2,
        "input_tokens": 2_000,
        "cached_input_tokens": 1_200,
        "image_input_tokens": 0,
        "audio_input_tokens": 0,
        "output_tokens": 1_000,
        "reasoning_tokens": 400,
        "cost": "0.000180000000",
        "amount": "0.000234000000",
        "currency": "usd",
    }
    assert (second["customer"], second["model"], second["amount"]) == ("ben", "qwen3.5-35b", "0.500000000000")


def test_usage_is_grouped_as_asked(weir: Weir, used: dict[str, Any]) -> None:
    """By key and by day, for one customer, within a period."""
    by_day = weir("usage", "--by", "day", "--json").json
    assert [(row["day"], row["requests"]) for row in by_day] == [("2026-03-01", 2), ("2026-03-02", 1)]
    (by_key,) = weir("usage", "--customer", "acme", "--by", "key,model", "--json").json
    assert (by_key["customer"], by_key["key"], by_key["key_name"]) == ("acme", used["key"], "app")
    first = weir("usage", "--until", "2026-03-01T13", "--by", "model", "--csv").csv
    assert [(row["model"], row["requests"], row["currency"]) for row in first] == [("qwen3.5-9b", "1", "usd")]
    assert weir("usage", "--since", "2026-03-03", "--json").json == []
    table = weir("usage", "--since", "2026-03-01", "--until", "2026-03-02").out
    assert "from 2026-03-01T00:00:00Z to 2026-03-02T00:00:00Z" in table
    assert "0.000234000000" in table


def test_days_follow_the_configured_time_zone(
    weir: Weir, used: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """00:30 UTC is still the first of March in New York."""
    monkeypatch.setenv("WEIR_BILLING__TIMEZONE", "America/New_York")
    (only,) = weir("usage", "--by", "day", "--json").json
    assert (only["day"], only["requests"]) == ("2026-03-01", len(used["events"]))


def test_the_margin_report_shows_gain_and_loss(weir: Weir, used: dict[str, Any]) -> None:
    """Per cent of the revenue, by hand: 54 of 234 is 23.08, and -0.3 of 0.5 is -60."""
    first, second = weir("report", "margin", "--json").json
    assert first["customer_id"] == used["acme"]
    assert {name: first[name] for name in ("customer", "model", "requests", "currency")} == {
        "customer": "acme",
        "model": "qwen3.5-9b",
        "requests": 2,
        "currency": "usd",
    }
    money = ("revenue", "cost", "margin", "margin_pct")
    assert [first[name] for name in money] == ["0.000234000000", "0.000180000000", "0.000054000000", "23.08"]
    assert [second[name] for name in money] == ["0.500000000000", "0.800000000000", "-0.300000000000", "-60.00"]
    assert weir("report", "margin", "--by", "customer", "--csv").csv[1]["margin_pct"] == "-60.00"
    assert "-0.300000000000" in weir("report", "margin").out


def assign(database: Database, acme: str, now: Instant) -> tuple[str, ...]:
    """Link the customer and make batches of what is due, as the pusher does; return their ids."""
    with database.writing() as conn:
        accounts.link_stripe(conn, acme, "cus_1", "sub_1", now, "test")
    with database.writing() as conn:
        deltas, _ = outbox.pending(conn)
        plan = batches.plan(deltas, outbox.tails(conn, [acme]), now, "weir_usage_micro", is_closing=True)
        outbox.append(conn, plan)
    return tuple(batch.id for batch in plan.batches)


def test_a_trace_tells_a_request_from_its_prices_to_its_batch(
    weir: Weir, used: dict[str, Any], database: Database
) -> None:
    """Before the push there is no batch; after it, the one of the request's own hour, and of its own time in it."""
    first, second, _ = used["events"]
    before = weir("trace", first.id, "--json").json
    assert before["meter_batch"] is None
    early = assign(database, used["acme"], Instant(NOON + 3 * HOUR_US))
    late_event = event(NOON, customer_id=used["acme"], api_key_id=used["key"], price_ref=used["quote"].ref)
    with database.writing() as conn:
        events.append(conn, [late_event], 0)
    (late,) = assign(database, used["acme"], Instant(NOON + 4 * HOUR_US))
    found = [weir("trace", each.id, "--json").json["meter_batch"] for each in (first, second, late_event)]
    assert found == [*early, late]
    assert len(set(found)) == 3
    traced = weir("trace", first.id, "--json").json
    assert (traced["meter_batch_state"], traced["is_carried_forward"]) == ("pending", False)
    assert traced["meter_event"].startswith(f"weir-{used['acme']}-")
    assert traced["billed_at"] == "2026-03-01T12:59:59Z"
    assert (before["meter_batches"], [each["meter_batch"] for each in traced["meter_batches"]]) == ([], [early[0]])
    changed = {"meter_batch", "meter_batch_state", "meter_event", "billed_at"}
    assert {name for name in before if traced[name] != before[name]} == changed | {"meter_batches"}
    assert traced.keys() == before.keys()
    assert {before[name] for name in changed} == {None}


def test_a_trace_has_the_events_row_and_its_prices(weir: Weir, used: dict[str, Any]) -> None:
    """Instants in RFC 3339, amounts and rates as decimals, and prices times tokens give the amount."""
    recorded: UsageEvent = used["events"][0]
    traced = weir("trace", recorded.id, "--json").json
    missing = set(UsageEvent._fields) - traced.keys()
    assert missing == {"cost_pico", "amount_pico"}
    assert (traced["cost"], traced["amount"], traced["currency"]) == ("0.000090000000", "0.000117000000", "usd")
    assert (traced["started_at"], traced["window_start"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z")
    assert traced["first_token_at"] == "2026-03-01T12:00:00.100000Z"
    assert (traced["customer"], traced["tags"], traced["anomaly"]) == ("acme", {"team": "blue"}, None)
    assert traced["unit_prices"] == {
        "input": "0.0390",
        "cached_input": "0.0039",
        "image_input": "0.0390",
        "audio_input": "0.0390",
        "output": "0.1560",
        "reasoning": "0.1560",
        "request": "0",
    }
    assert traced["unit_costs"]["input"] == "0.0300"
    assert (traced["margin"], traced["cost_rate_id"], traced["margin_rule_id"]) == ("30%", "cost_1", None)
    assert recorded.id in weir("trace", recorded.id).out


WEIR = "import sys; from proxy.main import main; sys.exit(main())"


def weir_process(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program itself, with a configuration of its own."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), **variables}
    command = [sys.executable, "-W", "error", "-c", WEIR, "--config", str(folder / "weir.toml"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_program_itself_does_the_same(tmp_path: Path, empty_database_url: str) -> None:
    """From an empty database, which is refused with the remedy, to a key; errors are lines, not tracebacks."""
    (tmp_path / "weir.toml").write_text(f'[database]\nurl = "{empty_database_url}"\n')
    empty = weir_process(tmp_path, "customer", "list")
    assert (empty.returncode, empty.stdout) == (FAILED, "")
    assert empty.stderr == "weir: the database is empty; run `weir db upgrade`\n"
    upgraded = weir_process(tmp_path, "db", "upgrade")
    assert (upgraded.returncode, upgraded.stdout) == (DONE, f"upgraded to {migrate.revisions()[-1]}\n")
    assert weir_process(tmp_path, "customer", "add", "acme").returncode == DONE
    key = weir_process(tmp_path, "key", "create", "acme")
    assert (key.returncode, key.stdout[:3]) == (DONE, "wk_")
    again = weir_process(tmp_path, "customer", "add", "acme")
    assert (again.returncode, again.stderr.count("\n")) == (REFUSED, 1)


def test_a_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    """With the command that writes one."""
    answer = weir_process(tmp_path, "customer", "list")
    assert answer.returncode == FAILED
    assert answer.stderr == f"weir: {tmp_path}/weir.toml does not exist; `weir init` writes one\n"
