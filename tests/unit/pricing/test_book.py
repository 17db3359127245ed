"""The price book: known answers by hand, boundaries, and that nothing is free by accident."""

import pytest

from billing.clock import Instant, instant_text
from billing.pricing import book as book_module
from billing.pricing.book import PriceBook
from billing.pricing.margins import Scope, parse_margin
from tests.tables import at, book, check, cost_rate, margin_rule

TABLE = """
cost    qwen3.5-9b  input 0.0300  output 0.1200                       from 2026-03-01T00
margin  global      30%                                               from 2026-03-01T00
margin  acme        margin:40%                                        from 2026-03-02T00
"""


def test_a_customers_own_margin_begins_at_midnight() -> None:
    """The boundary instant belongs to the new version, for that customer alone."""
    check(
        TABLE
        + """
    event  acme  qwen3.5-9b  2026-03-01T12              input 1000  output 500  = 0.000117000000 usd
    event  acme  qwen3.5-9b  2026-03-01T23:59:59.999999 input 1000  output 500  = 0.000117000000 usd
    event  acme  qwen3.5-9b  2026-03-02T00              input 1000  output 500  = 0.000150000000 usd
    event  beta  qwen3.5-9b  2026-03-02T00              input 1000  output 500  = 0.000117000000 usd
    """
    )


def test_every_token_type_has_its_own_price() -> None:
    """600 × 0.039 + 400 × 0.013 + 300 × 0.156 + 200 × 0.312 per 1M = 137.8 µ, and 0.00013."""
    check(
        """
    cost   big   input 0.03 cached_input 0.01 output 0.12 reasoning 0.24 request 0.0001  from 2026-03-01
    margin big   9%                       from 2026-03-01   // a customer who is called like the model
    margin model:big  30%                 from 2026-03-01
    event  acme  big  2026-03-01                        = 0.000130000000 usd (cost 0.000100000000)
    event  acme  big  2026-03-01  output 500            = 0.000208000000 usd (cost 0.000160000000)
    event  acme  big  2026-03-01  input 1000 cached 400 output 500 reasoning 200 = 0.000267800000 usd
    """
    )


def test_a_part_without_a_rate_is_charged_as_its_whole() -> None:
    """Cached as input, reasoning as output."""
    check(
        """
    cost   m  input 0.05 output 0.20   from 2026-03-01
    event  acme  m  2026-03-01  input 1000 cached 400 output 500 reasoning 200 = 0.000150000000 usd
    """
    )


def test_the_price_follows_the_cost() -> None:
    """A dearer cost is dearer for everybody from its instant on."""
    check(
        """
    cost   m  input 0.05 output 0.20   from 2026-03-01
    cost   m  input 0.10 output 0.40   from 2026-04-01
    margin acme/m  100%                from 2026-03-15
    event  acme  m  2026-03-01  input 1000 output 500 = 0.000195000000 usd
    event  acme  m  2026-03-15  input 1000 output 500 = 0.000300000000 usd
    event  acme  m  2026-04-01  input 1000 output 500 = 0.000600000000 usd
    event  beta  m  2026-04-01  input 1000 output 500 = 0.000390000000 usd
    """,
        default="30%",
    )


def test_a_model_without_a_cost_in_force_is_refused() -> None:
    """Before its first cost, under another name, and whatever margins there are."""
    check(
        TABLE
        + """
    event  acme  qwen3.5-9b  2026-02-28T23:59:59.999999  input 1000  output 500  = refused
    event  acme  qwen3.5-9B  2026-03-02                  input 1000  output 500  = refused
    event  acme  qwen3.5     2026-03-02                  input 1000  output 500  = refused
    event  acme  qwen3.5-*   2026-03-02                  input 1000  output 500  = refused
    """
    )


def test_what_costs_nothing_is_sold_for_nothing() -> None:
    """Only an explicit cost of 0 does that, which `weir cost set` takes by --force alone."""
    check(
        """
    cost   free  input 0 output 0   from 2026-03-01
    event  acme  free  2026-03-01  input 1000 output 500 = 0.000000000000 usd
    """,
        default="30%",
    )


def test_a_wrong_amount_in_a_table_is_found_with_the_right_one() -> None:
    """A test language that can not fail proves nothing; all faults are named, not the first."""
    with pytest.raises(AssertionError) as caught:
        check(
            TABLE
            + """
        event  acme  qwen3.5-9b  2026-03-01  input 1000  output 500  = 0.000117000001 usd
        event  acme  qwen3.5-9b  2026-03-01  input 1000  output 500  = 0.000117000000 usd
        event  acme  qwen3.5-9b  2026-03-01  input 1000  output 500  = refused
        event  acme  qwen3.5-9b  2026-02-01  input 1000  output 500  = 0.000117000000 usd
        event  acme  qwen3.5-9b  2026-03-01  input 1000  output 500  = 0.000117000000 usd (cost 0.1)
        """
        )

    text = str(caught.value)
    assert text.count("comes to 0.000117000000 usd") == 2
    assert text.count("is refused") == 1
    assert text.count("costs 0.000090000000") == 1


@pytest.mark.parametrize(
    "line",
    [
        "events acme m 2026-03-01 input 1 = refused",
        "event acme m 2026-03-01 imput 1 output 0 = refused_",
        "cost m input 0.03 output 0.12 cache 0.01 from 2026-03-01\nevent a m 2026-03-01 input 1 = refused",
        "cost m input 0.03 output 0.12 from 2026-03-01\nevent a m 2026-03-01 imput 1 = 0 usd",
        "cost m input 0.03 output 0.12 from 2026-03-01",
    ],
)
def test_a_slip_in_a_table_is_no_silent_pass(line: str) -> None:
    """Unknown words, and a table without events."""
    with pytest.raises(AssertionError):
        check(line)


def test_a_quote_names_the_versions_and_the_margin_behind_it() -> None:
    """What an event is priced with can be traced."""
    prices = book(TABLE)
    before = prices.quote("qwen3.5-9b", "acme", at("2026-03-01"))
    after = prices.quote("qwen3.5-9b", "acme", at("2026-03-02"))

    assert before is not None
    assert after is not None
    assert (before.cost_rate_id, before.margin_rule_id, before.margin) == ("cost_0000", "margin_0001", "30%")
    assert (after.cost_rate_id, after.margin_rule_id, after.margin) == (
        "cost_0000",
        "margin_0002",
        "margin:40%",
    )
    assert before.ref != after.ref
    reasons = prices.explain("qwen3.5-9b", "acme", at("2026-03-02"))
    assert [reason.verdict.value for reason in reasons] == ["wins", "overruled", "overruled"]


def test_without_a_rule_the_quote_names_none() -> None:
    """The default margin of the configuration is no version."""
    quote = book("cost m input 0.03 output 0.12 from 2026-03-01", default="30%").quote("m", None, at("2026-03-01"))

    assert quote is not None
    assert (quote.margin_rule_id, quote.margin, quote.currency) == (None, "30%", "usd")


def test_customers_under_the_same_rules_share_a_quote() -> None:
    """A quote says nothing about the customer, so a thousand of them do not make a thousand rows."""
    prices = book(TABLE)
    instant = at("2026-03-01")

    assert prices.quote("qwen3.5-9b", "beta", instant) == prices.quote("qwen3.5-9b", None, instant)


def test_a_quote_is_worked_out_once_per_version() -> None:
    """Within an interval the same object comes back; beyond its end, and before its start, another."""
    prices = book(TABLE)
    noon = prices.quote("qwen3.5-9b", "acme", at("2026-03-01T12"))

    assert prices.quote("qwen3.5-9b", "acme", at("2026-03-01T00")) is noon
    assert prices.quote("qwen3.5-9b", "acme", at("2026-03-01T23:59:59.999999")) is noon
    assert prices.quote("qwen3.5-9b", "acme", at("2026-03-02T00")) is not noon
    assert prices.quote("qwen3.5-9b", "acme", at("2026-02-28")) is None
    assert prices.quote("qwen3.5-9b", "acme", at("2026-03-01T12")) == noon


def test_the_quotes_at_hand_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of models that clients make up are not kept at all, and those of customers up to a limit."""
    monkeypatch.setattr(book_module, "QUOTE_CACHE_ENTRIES_MAX", 100)
    prices = book("cost m input 0.03 output 0.12 from 2026-03-01")
    instant = at("2026-03-01")
    for number in range(1000):
        assert prices.quote(f"unknown-{number}", "acme", instant) is None
    assert len(prices._held) == 0

    first = prices.quote("m", "customer-0", instant)
    for number in range(101):
        assert prices.quote("m", f"customer-{number}", instant) == first
    assert 0 < len(prices._held) <= 100


def changes(prices: PriceBook, customer: str | None, since: str) -> list[str]:
    """All changes of the model m's quote after an instant."""
    found: list[str] = []
    instant: Instant | None = at(since)
    while instant is not None:
        instant = prices.next_change("m", customer, instant)
        if instant is not None:
            found.append(instant_text(instant)[:10])
    return found


def test_the_next_change_is_told_in_advance() -> None:
    """Costs, rules and removals; not what a more specific rule hides, and not the changes of others."""
    prices = book(
        """
    cost   m       input 0.05 output 0.20  from 2026-03-01
    margin global  10%                     from 2026-03-02
    margin acme    20%                     from 2026-03-03
    margin global  11%                     from 2026-03-04   // hidden from acme
    margin acme    none                    from 2026-03-05
    margin other   50%                     from 2026-03-06
    cost   m       input 0.06 output 0.20  from 2026-03-07
    """
    )

    assert changes(prices, None, "2026-01-01") == ["2026-03-01", "2026-03-02", "2026-03-04", "2026-03-07"]
    assert changes(prices, "acme", "2026-01-01") == [
        "2026-03-01",
        "2026-03-02",
        "2026-03-03",
        "2026-03-05",
        "2026-03-07",
    ]


def test_a_model_is_priced_from_its_first_cost_on() -> None:
    """Then it may be sold; before, it is refused."""
    prices = book(TABLE)

    assert not prices.is_priced("qwen3.5-9b", "acme", at("2026-02-28"))
    assert prices.is_priced("qwen3.5-9b", "acme", at("2026-03-01"))
    assert not prices.is_priced("another", "acme", at("2026-03-01"))


def test_a_price_that_the_ledger_can_not_hold_is_not_sold() -> None:
    """9,000 per 1M is the limit; 8,999 × 1.3 is above it, and a configured default can bring that about."""
    prices = book("cost m input 8999 output 1 from 2026-03-01", default="30%")
    resolved = prices.resolve("m", None, at("2026-03-01"))

    assert prices.quote("m", None, at("2026-03-01")) is None
    assert not prices.is_priced("m", None, at("2026-03-01"))
    assert resolved is not None
    assert resolved.units_beyond_limit() == ("input", "cached_input")


def test_a_book_with_one_more_version_leaves_the_old_one_as_it_was() -> None:
    """A snapshot is a value."""
    old = book(TABLE)
    instant = at("2026-03-05")
    before = old.quote("qwen3.5-9b", "acme", instant)

    dearer = old.with_cost_rate(cost_rate("qwen3.5-9b", "input 1 output 2 from 2026-03-03", number=9))
    ruled = old.with_margin_rule(margin_rule("acme", "5%", "2026-03-03", number=9))

    assert old.quote("qwen3.5-9b", "acme", instant) == before
    assert dearer.quote("qwen3.5-9b", "acme", instant) != before
    assert ruled.quote("qwen3.5-9b", "acme", instant) != before
    assert ruled.margin("qwen3.5-9b", "acme", instant) == parse_margin("5%")


def test_a_book_lists_what_it_knows() -> None:
    """Models that have a cost at some time, customers that have a rule at some time, versions in order."""
    prices = book(TABLE + "cost another input 1 output 1 from 2027-01-01")

    assert prices.models() == ("another", "qwen3.5-9b")
    assert prices.customers_with_rules() == ("acme",)
    assert [rate.id for rate in prices.versions_of_cost("qwen3.5-9b")] == ["cost_0000"]
    assert [rule.id for rule in prices.versions_of_margin(Scope(customer_id="acme"))] == ["margin_0002"]
    assert prices.versions_of_margin(Scope(customer_id="beta")) == ()
