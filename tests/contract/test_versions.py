"""Cost rates, margin rules and quotes in the ledger: the same on SQLite and PostgreSQL."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from billing.clock import Instant
from billing.errors import ConfigError, NotFoundError, RefusedError, UsageError
from billing.ledger import accounts, epoch, migrate, plans, schema, versions
from billing.ledger.database import Database
from billing.limits import MARGIN_PPM_MAX, RATE_PICO_MAX, REQUEST_FEE_PICO_MAX
from billing.money import Pico, PicoPerToken
from billing.pricing.book import PriceBook
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope
from billing.pricing.quote import Quote, UnitPrices
from billing.pricing.rates import CostRate
from tests.tables import at, cost_rate, margin_rule

NOW = at("2026-03-01")
SETTINGS = {"default_margin": "30%", "currency": "usd"}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database on the current schema."""
    database = Database(database_url)
    migrate.upgrade(database)
    yield database
    database.close()


def append_rate(database: Database, rate: CostRate, *, backdate: bool = True) -> PriceBook:
    """Add a cost in a transaction of its own."""
    with database.writing() as conn:
        return versions.append_cost_rate(conn, rate, backdate=backdate, actor="test", **SETTINGS)


def append_rule(database: Database, rule: MarginRule, *, backdate: bool = True) -> PriceBook:
    """Add a rule in a transaction of its own."""
    with database.writing() as conn:
        return versions.append_margin_rule(conn, rule, backdate=backdate, actor="test", **SETTINGS)


def loaded(database: Database) -> PriceBook:
    """The book as any gateway would load it."""
    with database.reading() as conn:
        return versions.load_book(conn, **SETTINGS)


def audited(database: Database) -> list[tuple[str, str, str]]:
    """Actor, action and subject of every line of the audit log, in order."""
    log = schema.audit_log.c
    with database.reading() as conn:
        return [tuple(row) for row in conn.execute(sa.select(log.actor, log.action, log.subject).order_by(log.id))]


def customer_id(database: Database, name: str) -> str:
    """A new customer."""
    with database.writing() as conn:
        return accounts.add_customer(conn, name, None, NOW, "test").id


def test_versions_come_back_as_they_were_written(database: Database) -> None:
    """Each field, None and 0 told apart, up to the limits."""
    acme = customer_id(database, "acme")
    rates = [
        cost_rate("m", "input 0.03 output 0.12 from 2026-03-01", number=1),
        cost_rate(
            "m",
            "input 0.03 cached_input 0 output 0.12 reasoning 0.000001 request 0.1 from 2026-03-02",
            number=2,
        ),
        CostRate(
            "cost_3",
            "größe",
            PicoPerToken(1),
            None,
            PicoPerToken(1),
            None,
            Pico(REQUEST_FEE_PICO_MAX // 2),
            NOW,
            NOW,
            PicoPerToken(0),
            PicoPerToken(7),
        ),
    ]
    rules = [
        margin_rule("global", "30%", "2026-03-01", number=1),
        margin_rule("model:m", "margin:12.3456%", "2026-03-01", number=2),
        replace(margin_rule("x/m", "-10%", "2026-03-01", number=3), scope=Scope("m", acme)),
        replace(margin_rule("x", "0%", "2026-03-01", number=4), scope=Scope(customer_id=acme)),
        margin_rule("model:m", "none", "2026-03-02", number=5),
    ]
    for rate in rates:
        append_rate(database, rate)
    for rule in rules:
        append_rule(database, rule)

    found = loaded(database)

    assert set(found.cost_rates) == set(rates)
    assert set(found.margin_rules) == set(rules)
    assert (str(found.default_margin), found.currency) == ("30%", "usd")


def test_an_append_returns_the_book_that_is_loaded_next(database: Database) -> None:
    """What the admin was shown is what gateways will charge."""
    shown = append_rate(database, cost_rate("m", "input 0.03 output 0.12 from 2026-03-01", number=1))
    assert loaded(database).quote("m", None, NOW) == shown.quote("m", None, NOW)

    shown = append_rule(database, margin_rule("global", "margin:40%", "2026-03-01", number=2))
    quote = shown.quote("m", None, NOW)

    assert loaded(database).quote("m", None, NOW) == quote
    assert quote is not None
    assert (quote.margin, quote.price.input) == ("margin:40%", 50_000)


def test_every_change_is_seen_by_gateways_and_logged(database: Database) -> None:
    """One step of the epoch and one line each, with who did it and what."""
    with database.reading() as conn:
        before = epoch.current(conn)

    append_rate(database, cost_rate("m", "input 0.03 output 0.12 request 0.5 from 2026-03-01", number=1))
    append_rule(database, margin_rule("model:m", "12.5%", "2026-03-01", number=2))
    append_rule(database, margin_rule("model:m", "none", "2026-03-02", number=3))

    with database.reading() as conn:
        assert epoch.current(conn) == before + 3
        details = [json.loads(text) for text in conn.scalars(sa.select(schema.audit_log.c.details).order_by("id"))]
    assert audited(database) == [
        ("test", "cost.set", "cost_0001"),
        ("test", "margin.set", "margin_0002"),
        ("test", "margin.remove", "margin_0003"),
    ]
    assert details[0] == {
        "model": "m",
        "input": "0.0300",
        "cached_input": None,
        "output": "0.1200",
        "reasoning": None,
        "image_input": None,
        "audio_input": None,
        "request": "0.5",
        "reason": None,
        "currency": "usd",
        "effective_from": "2026-03-01T00:00:00Z",
    }
    assert [entry["margin"] for entry in details[1:]] == ["12.5%", None]


def test_a_refused_change_leaves_no_trace(database: Database) -> None:
    """Neither a version nor a line nor a step."""
    append_rate(database, cost_rate("m", "input 0.03 output 0.12 from 2026-03-01", number=1))
    with database.reading() as conn:
        before = epoch.current(conn)
    loss = MarginRule("margin_9", Scope(), Margin(MarginKind.MARKUP, -100_000), False, NOW, NOW)

    with pytest.raises(RefusedError, match="below cost"):
        append_rule(database, loss)

    with database.reading() as conn:
        assert epoch.current(conn) == before
    assert loaded(database).margin_rules == ()
    assert len(audited(database)) == 1


def test_a_loss_is_kept_together_with_its_permission(database: Database) -> None:
    """A later cost is judged with the permission that the rule was given."""
    rule = MarginRule("margin_9", Scope(), Margin(MarginKind.MARKUP, -100_000), True, NOW, NOW)
    append_rule(database, rule)

    append_rate(database, cost_rate("m", "input 0.03 output 0.12 from 2026-03-01", number=1))

    quote = loaded(database).quote("m", None, NOW)
    assert quote is not None
    assert (quote.cost.input, quote.price.input) == (30_000, 27_000)


def test_a_cost_that_a_customers_margin_makes_too_dear_is_refused(database: Database) -> None:
    """Every customer's price is judged, not only the list price."""
    acme = customer_id(database, "acme")
    append_rule(database, replace(margin_rule("x", "900%", "2026-03-01"), scope=Scope(customer_id=acme)))

    with pytest.raises(RefusedError, match=f"m for {acme}: input, cached_input would be beyond the limit"):
        append_rate(database, cost_rate("m", "input 1000 output 1 from 2026-03-01"))


@pytest.mark.parametrize("backdate", [True, False])
def test_a_start_in_the_past_needs_a_word(database: Database, backdate: bool) -> None:
    """For costs and for rules."""
    rate = replace(cost_rate("m", "input 0.03 output 0.12 from 2026-03-01"), recorded_at=Instant(NOW + 1))
    rule = replace(margin_rule("global", "30%", "2026-03-01"), recorded_at=Instant(NOW + 1))
    if backdate:
        append_rate(database, rate, backdate=True)
        append_rule(database, rule, backdate=True)
        assert loaded(database).is_priced("m", None, NOW)
        return
    with pytest.raises(RefusedError, match="--backdate"):
        append_rate(database, rate, backdate=False)
    with pytest.raises(RefusedError, match="--backdate"):
        append_rule(database, rule, backdate=False)


def test_a_pattern_is_no_model(database: Database) -> None:
    """Whoever appends is told so, the command line and the API alike."""
    with pytest.raises(UsageError, match="no wildcards"):
        append_rate(database, cost_rate("qwen*", "input 0.03 output 0.12 from 2026-03-01"))
    with pytest.raises(UsageError, match="no wildcards"):
        append_rule(database, margin_rule("model:qwen*", "30%", "2026-03-01"))


def test_only_a_rule_in_force_can_be_removed(database: Database) -> None:
    """Not before it begins, not twice, not in another scope; and it can be set again."""
    append_rule(database, margin_rule("model:m", "30%", "2026-03-02", number=1))

    for subject, start in (("model:m", "2026-03-01"), ("model:n", "2026-03-02"), ("global", "2026-03-02")):
        with pytest.raises(NotFoundError, match="has no margin rule at"):
            append_rule(database, margin_rule(subject, "none", start, number=2))
    append_rule(database, margin_rule("model:m", "none", "2026-03-02", number=3))
    with pytest.raises(NotFoundError, match="has no margin rule at"):
        append_rule(database, margin_rule("model:m", "none", "2026-03-03", number=4))
    append_rule(database, margin_rule("model:m", "5%", "2026-03-03", number=5))

    assert str(loaded(database).margin("m", None, at("2026-03-02"))) == "30%"  # the default
    assert str(loaded(database).margin("m", None, at("2026-03-03"))) == "5%"


def test_changes_follow_one_another(database: Database) -> None:
    """Two changes that are fine alone and break the limit together can not both be accepted."""
    append_rate(database, cost_rate("m", "input 1 output 1 from 2026-03-01", number=1))
    outcomes: list[Exception | PriceBook] = []

    def raise_the_margin() -> None:
        try:
            outcomes.append(append_rule(database, margin_rule("global", "900%", "2026-03-01", number=3)))
        except RefusedError as error:
            outcomes.append(error)

    second = threading.Thread(target=raise_the_margin)
    with database.writing() as conn:
        dearer = cost_rate("m", "input 1000 output 1 from 2026-03-02", number=2)
        versions.append_cost_rate(conn, dearer, backdate=True, actor="test", **SETTINGS)
        second.start()
        second.join(timeout=0.5)  # long enough for a change that does not wait to finish
        assert outcomes == []
    second.join(timeout=30)

    assert [type(outcome) for outcome in outcomes] == [RefusedError]
    assert loaded(database).margin_rules == ()


def test_assignments_are_loaded_with_the_book_and_tell_the_plan_of_an_instant(database: Database) -> None:
    """A plan's rule wins from the assignment on, and ends with it."""
    acme = customer_id(database, "acme")
    with database.writing() as conn:
        gold = plans.add(conn, "gold", NOW, "test")
        plans.assign(conn, acme, gold, Instant(NOW + 10), NOW, "test")
        plans.assign(conn, acme, None, Instant(NOW + 20), NOW, "test")
    append_rule(database, MarginRule("margin_9", Scope(plan_id=gold.id), Margin(MarginKind.MARKUP, 1), False, NOW, NOW))

    book = loaded(database)
    assert [book.buyer(acme, Instant(NOW + at)).plan_id for at in (9, 10, 19, 20)] == [None, gold.id, gold.id, None]
    assert [str(book.margin("m", acme, Instant(NOW + at))) for at in (9, 10, 20)] == ["30%", "0.0001%", "30%"]


@pytest.mark.parametrize("default", ["30", "-5%", "margin:100%", "5000%"])
def test_a_default_margin_that_is_none_is_a_fault_of_the_configuration(database: Database, default: str) -> None:
    """It names the key that has to be changed."""
    with database.reading() as conn, pytest.raises(ConfigError, match=r"billing\.default_margin: "):
        versions.load_book(conn, default_margin=default, currency="usd")


def extreme_quote() -> Quote:
    """A quote at the limits of every column."""
    most = PicoPerToken(RATE_PICO_MAX)
    prices = UnitPrices(most, PicoPerToken(0), most, PicoPerToken(1), Pico(REQUEST_FEE_PICO_MAX))
    margin = str(Margin(MarginKind.MARKUP, MARGIN_PPM_MAX))
    return Quote.of(
        model="größe",
        currency="usd",
        cost_rate_id="cost_1",
        margin_rule_id=None,
        margin=margin,
        cost=prices,
        price=UnitPrices(PicoPerToken(2), most, PicoPerToken(3), most, Pico(4), most, PicoPerToken(0)),
    )


def test_a_quote_comes_back_as_it_was_stored_however_often(database: Database) -> None:
    """Each worker stores what it charges; the first one wins and the others find it there."""
    quotes = [extreme_quote(), replace(extreme_quote(), ref="another", margin_rule_id="margin_1")]
    for quote in (*quotes, *quotes):
        with database.writing() as conn:
            versions.store_quote(conn, quote)

    with database.reading() as conn:
        assert [versions.load_quote(conn, quote.ref) for quote in quotes] == quotes
        count = conn.scalar(sa.select(sa.func.count()).select_from(schema.price_quotes))
    assert count == 2


def test_a_quote_of_the_release_before_images_prices_them_as_input(database: Database) -> None:
    """Its row has no prices for them; a worker of this release finds the same quote in it, under the same ref."""
    plain = replace(extreme_quote(), price=extreme_quote().cost)
    with database.writing() as conn:
        versions.store_quote(conn, plain)
        unit_columns = [f"{side}{unit}_input_pico" for side in ("cost_", "") for unit in ("image", "audio")]
        conn.execute(sa.update(schema.price_quotes).values(dict.fromkeys(unit_columns)))

    with database.writing() as conn:
        versions.store_quote(conn, plain)
        found = versions.load_quote(conn, plain.ref)
    assert found == plain
    assert found.price.image_input == found.price.audio_input == found.price.input == RATE_PICO_MAX


def test_another_quote_under_the_same_ref_is_never_taken_for_the_first(database: Database) -> None:
    """An event would name prices that it was not charged."""
    with database.writing() as conn:
        versions.store_quote(conn, extreme_quote())

    with pytest.raises(AssertionError, match="same ref"), database.writing() as conn:
        versions.store_quote(conn, replace(extreme_quote(), margin="31%"))


def test_an_unknown_quote_is_not_found(database: Database) -> None:
    """Its ref is named."""
    with database.reading() as conn, pytest.raises(NotFoundError, match="0123456789abcdef"):
        versions.load_quote(conn, "0123456789abcdef")
