"""`weir adjust` as an admin uses it, and its way to the customer's usage, receipt and invoice."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy.main  # noqa: F401 -- it mounts the commands
from billing import clock, ids
from billing.clock import HOUR_US, Instant
from billing.ledger import accounts, events, migrate, versions
from billing.ledger.database import Database
from billing.money import PICO_PER_MICRO, parse_amount
from tests.acceptance.commands import NOT_FOUND, REFUSED, USAGE, Weir, runner
from tests.stripe_bench import Bench, bench
from tests.tables import book
from tests.unit.ledger.made import event

BOOK = """
    cost    qwen3.5-9b  input 0.0300  output 0.1200    from 2026-01-01
    margin  global      30%                            from 2026-01-01
"""
WHY = ("--reason", "our mistake")


@pytest.fixture
def database(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", database_url)
    monkeypatch.setenv("COLUMNS", "250")
    opened = Database(database_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def weir(database: Database, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line."""
    return runner(capsys)


def use(database: Database, name: str, count: int = 1, *, model: str = "qwen3.5-9b") -> list[str]:
    """Record requests of 0.000117 usd now, of the customer of this name; return their ids."""
    quote = book(BOOK).quote("qwen3.5-9b", None, clock.now())
    assert quote is not None
    with database.writing() as conn:
        known = {each.name: each.id for each in accounts.list_customers(conn)}
        customer_id = known.get(name) or accounts.add_customer(conn, name, None, clock.now(), "test").id
        versions.store_quote(conn, quote)
        made = [
            event(clock.now(), customer_id=customer_id, price_ref=quote.ref, model=model, id=ids.uuid7())
            for _ in range(count)
        ]
        events.append(conn, made, 0)
    return [each.id for each in made]


def spent(weir: Weir, name: str) -> str:
    """What a customer's usage comes to."""
    (row,) = weir("usage", "--customer", name, "--by", "customer", "--json").json
    amount: str = row["amount"]
    return amount


def test_a_refund_is_in_the_usage_and_on_the_receipt(weir: Weir, database: Database) -> None:
    """Twice is refused, and says why."""
    (request,) = use(database, "acme")
    (row,) = weir("adjust", request, "--refund", *WHY, "--json").json
    assert (row["request"], row["amount"], row["net_amount"], row["currency"]) == (
        request,
        "-0.000117000000",
        "0.000000000000",
        "usd",
    )
    assert spent(weir, "acme") == "0.000000000000"
    receipt = weir("trace", request, "--json").json
    assert (receipt["amount"], receipt["net_amount"]) == ("0.000117000000", "0.000000000000")
    assert [(each["id"], each["reason"]) for each in receipt["adjustments"]] == [(row["adjustment"], "our mistake")]
    own = weir("trace", row["adjustment"], "--json").json
    assert (own["outcome"], own["adjusts"], own["reason"]) == ("adjustment", request, "our mistake")
    again = weir("adjust", request, "--refund", *WHY)
    assert (again.code, again.out) == (REFUSED, "")
    assert "there is nothing to change" in again.err


def test_a_key_makes_a_command_safe_to_repeat(weir: Weir, database: Database) -> None:
    """The second answer tells of the first one's adjustment."""
    (request,) = use(database, "acme")
    first = weir("adjust", request, "--amount", "-0.00001", *WHY, "--key", "ticket 7", "--json").json
    again = weir("adjust", request, "--amount", "-0.00001", *WHY, "--key", "ticket 7", "--json").json
    assert [row["adjustment"] for row in first] == [row["adjustment"] for row in again]
    assert again[0]["note"] == "this key has corrected it before"
    assert spent(weir, "acme") == "0.000107000000"
    assert weir("adjust", request, "--amount", "-0.00002", *WHY, "--key", "ticket 7").code == REFUSED


def test_a_backdated_margin_reaches_history_by_repricing(weir: Weir, database: Database) -> None:
    """`then` prices each request by what is known now of its own instant: 20 % instead of 30 %."""
    requests = use(database, "acme", 3)
    cost = ("cost", "set", "qwen3.5-9b", "--input", "0.03", "--output", "0.12", "--from", "-1d", "--backdate")
    assert weir(*cost).code == 0
    assert weir("margin", "set", "20%", "--from", "-1d", "--backdate").code == 0
    assert spent(weir, "acme") == "0.000351000000"
    change = ("--filter", "customer=acme", "--reprice", "then", *WHY)
    (planned,) = weir("adjust", *change, "--dry-run", "--json").json
    assert (planned["events"], planned["amount"]) == (3, "-0.000027000000")
    assert spent(weir, "acme") == "0.000351000000"
    (done,) = weir("adjust", *change, "--yes", "--json").json
    assert (done["events"], done["skipped"], done["amount"]) == (3, 0, "-0.000027000000")
    assert spent(weir, "acme") == "0.000324000000"
    (again,) = weir("adjust", *change, "--yes", "--json").json
    assert (again["events"], again["skipped"]) == (0, 3)
    assert weir("trace", requests[0], "--json").json["net_amount"] == "0.000108000000"


def test_many_requests_are_chosen_by_what_they_have_in_common(weir: Weir, database: Database) -> None:
    """More than one transaction takes; others are left alone."""
    use(database, "acme", 1_001)
    use(database, "acme", 2, model="another")
    use(database, "ben", 2)
    change = ("--filter", "customer=acme", "--filter", "model=qwen3.5-9b", "--refund", *WHY)
    (done,) = weir("adjust", *change, "--yes", "--json").json
    assert done["events"] == 1_001
    assert spent(weir, "acme") == "0.000234000000"
    assert spent(weir, "ben") == "0.000234000000"
    assert weir("adjust", "--filter", "since=+1h", "--refund", *WHY, "--yes", "--json").json == []


def test_many_requests_are_not_corrected_without_a_yes(
    weir: Weir, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal nobody could answer: it is said what would be written, and nothing is."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    use(database, "acme", 2)
    answer = weir("adjust", "--filter", "customer=acme", "--refund", *WHY)
    assert answer.code == REFUSED
    assert "refund: 2 requests of 1 customers, together -0.000234000000 usd; add --yes" in answer.err
    assert spent(weir, "acme") == "0.000234000000"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--refund", *WHY), USAGE),
        (("x", "--filter", "customer=acme", "--refund", *WHY), USAGE),
        (("x", "--refund"), USAGE),
        (("x", "--refund", "--reason", " "), USAGE),
        (("x", "--refund", "--reason", "two\nlines"), USAGE),
        (("x", *WHY), USAGE),
        (("x", "--refund", "--amount", "1", *WHY), USAGE),
        (("x", "--amount", "a lot", *WHY), USAGE),
        (("x", "--amount", "99999999", *WHY), USAGE),
        (("x", "--refund", *WHY), NOT_FOUND),
        (("--filter", "customer=nobody", "--refund", *WHY), NOT_FOUND),
        (("--filter", "colour=red", "--refund", *WHY), USAGE),
        (("--filter", "model", "--refund", *WHY), USAGE),
        (("--filter", "model=a", "--filter", "model=b", "--refund", *WHY), USAGE),
        (("{request}", "--amount", "-1", *WHY), REFUSED),
        (("{request}", "--output-tokens", "1", *WHY), REFUSED),
        (("{request}", "--reprice", "1971-01-01", *WHY), REFUSED),
    ],
)
def test_what_can_not_be_is_refused_and_changes_nothing(
    weir: Weir, database: Database, arguments: tuple[str, ...], code: int
) -> None:
    """One line that says why."""
    (request,) = use(database, "acme")
    answer = weir("adjust", *(each.replace("{request}", request) for each in arguments))
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("weir: ")
    assert spent(weir, "acme") == "0.000117000000"


def test_one_refusal_leaves_all_named_requests_alone(weir: Weir, database: Database) -> None:
    """They are one transaction."""
    first, second = use(database, "acme", 2)
    assert weir("adjust", second, "--refund", *WHY).code == 0
    answer = weir("adjust", first, second, "--refund", *WHY)
    assert answer.code == REFUSED
    assert f"{second}: there is nothing to change; nothing was changed" in answer.err
    assert spent(weir, "acme") == "0.000117000000"


# Stripe


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, on the machine's clock, as the command is."""
    with bench(database_url, now=None) as bench_:
        yield bench_


def test_a_refund_of_what_stripe_has_lowers_what_it_gets_next(
    made: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No meter event is negative; Σ units and carry are the amounts assigned, to the picounit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIR_DATABASE__URL", made.config.database.url)
    weir = runner(capsys)
    acme = made.add("acme")
    quote = book(BOOK).quote("qwen3.5-9b", None, made.now())
    assert quote is not None
    with made.database.writing() as conn:
        versions.store_quote(conn, quote)
        request = event(
            Instant(made.now() - HOUR_US),
            customer_id=acme.id,
            price_ref=quote.ref,
            amount_pico=5 * PICO_PER_MICRO + 7,
        )
        events.append(conn, [request], 0)
    made.push(is_closing=True)
    assert made.stripe_units(acme.id) == 5

    assert weir("adjust", request.id, "--refund", *WHY).code == 0
    made.push(is_closing=True)
    assert made.stripe_units(acme.id) == 5

    now = made.now()
    window = clock.window_start(now, acme.period_start, acme.period_end)
    more = event(now, customer_id=acme.id, amount_pico=8 * PICO_PER_MICRO, window_start=window)
    with made.database.writing() as conn:
        events.append(conn, [more], 0)
    made.push(is_closing=True)
    assert made.stripe_units(acme.id) == 8
    assert all(float(each.value) > 0 for each in made.double.meter_events)
    assert made.recorded_pico(acme.id) == made.assigned_pico(acme.id) == parse_amount("0.000008")
    made.audit(acme.id)
