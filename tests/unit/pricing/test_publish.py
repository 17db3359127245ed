"""What may be published: units of rates, names, starts, and prices that are neither too low nor too high."""

import pytest

from billing.clock import Instant
from billing.errors import InvalidAmountError, RefusedError, UsageError
from billing.pricing import publish
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope
from tests.tables import at, book


@pytest.mark.parametrize(
    ("text", "rate"), [("0.0001", 100), ("0.0375", 37_500), ("1000", 1_000_000_000), ("0.000123", 123)]
)
def test_usual_rates_are_read_exactly(text: str, rate: int) -> None:
    """From 0.0001 to 1000 per 1M tokens, both included."""
    assert publish.read_rate(text, "--input", force=False) == rate


@pytest.mark.parametrize(
    ("text", "per_million", "forcible"),
    [
        ("0.00000003", "0.0300", False),
        ("0.000000000001", "0.000001", False),
        ("0.000099", "99.0000", True),
        ("0.0000999999", "99.9999", False),
    ],
)
def test_a_price_per_token_is_recognised_and_converted(
    text: str,
    per_million: str,
    forcible: bool,
) -> None:
    """The likeliest slip of all: the refusal has the rate that was meant, and --force where it helps."""
    with pytest.raises(RefusedError, match=f"per token.*write --input {per_million}") as caught:
        publish.read_rate(text, "--input", force=False)
    assert ("--force" in str(caught.value)) == forcible


def test_a_tiny_rate_is_taken_by_force() -> None:
    """Down to the smallest one that can be represented."""
    assert publish.read_rate("0.000001", "--input", force=True) == 1


def test_more_than_six_decimals_are_a_slip_of_the_caller_even_by_force() -> None:
    """Nothing is rounded unseen."""
    for text, force in (("0.1234567", False), ("0.00000003", True)):
        with pytest.raises(InvalidAmountError, match="more than 6 decimals"):
            publish.read_rate(text, "--input", force=force)


@pytest.mark.parametrize("text", ["1000.000001", "1500", "9000"])
def test_a_huge_rate_is_refused_without_force(text: str) -> None:
    """Cents instead of dollars, or a rate per more than a million."""
    with pytest.raises(RefusedError, match="--force"):
        publish.read_rate(text, "--output", force=False)
    assert publish.read_rate(text, "--output", force=True) > 10**9


def test_a_rate_beyond_the_ledger_is_refused_even_by_force() -> None:
    """9,000 per 1M is the limit, since an event has to fit 63 bits."""
    with pytest.raises(RefusedError, match=r"dearest rate, 9000\.0000 per 1M"):
        publish.read_rate("9000.000001", "--output", force=True)


@pytest.mark.parametrize("text", ["0", "0.0", "0.000000"])
def test_a_rate_of_zero_is_refused_without_force(text: str) -> None:
    """Nothing is free by accident."""
    with pytest.raises(RefusedError, match="free; add --force"):
        publish.read_rate(text, "--input", force=False)
    assert publish.read_rate(text, "--input", force=True) == 0


@pytest.mark.parametrize("text", ["-1", "-0.03", "abc", "", "1e-3", "0,03", "0.03 usd"])
def test_what_is_no_rate_is_a_slip_of_the_caller(text: str) -> None:
    """Not a rule's refusal: the words are wrong."""
    with pytest.raises(InvalidAmountError, match="the rate"):
        publish.read_rate(text, "--input", force=False)


def test_a_part_that_was_not_given_has_no_rate() -> None:
    """None follows the whole; a text is read as any rate."""
    assert publish.read_rate_or_none(None, "--reasoning", force=False) is None
    assert publish.read_rate_or_none("0.24", "--reasoning", force=False) == 240_000
    with pytest.raises(RefusedError):
        publish.read_rate_or_none("0", "--reasoning", force=False)


def test_a_fee_is_read_exactly_and_has_limits() -> None:
    """Zero is the usual fee; below it is no fee, and above 100 is none either."""
    assert publish.read_fee("0", "--request") == 0
    assert publish.read_fee("0.000000000001", "--request") == 1
    assert publish.read_fee("100", "--request") == 10**14
    with pytest.raises(RefusedError, match="dearest request, 100"):
        publish.read_fee("100.000000000001", "--request")
    with pytest.raises(InvalidAmountError, match="negative"):
        publish.read_fee("-0.01", "--request")


@pytest.mark.parametrize("model", ["qwen3.5-9b", "Qwen/Qwen3.5-9B", "modèle", "a b", "x" * 200])
def test_a_model_may_have_any_exact_name(model: str) -> None:
    """It is what the client writes into its request."""
    publish.check_model_name(model)


@pytest.mark.parametrize("model", ["", " m", "m ", "m\n", "a\x00b", "x" * 201])
def test_a_name_that_nobody_could_ask_for_is_refused(model: str) -> None:
    """Invisible characters would make a second model that looks like the first."""
    with pytest.raises(UsageError, match="no model name"):
        publish.check_model_name(model)


@pytest.mark.parametrize("model", ["qwen3.5-*", "*", "qwen?"])
def test_a_pattern_is_refused_since_names_are_exact(model: str) -> None:
    """It would be a price that never applies."""
    with pytest.raises(UsageError, match="no wildcards"):
        publish.check_model_name(model)


def test_a_version_begins_now_or_later_unless_backdating_is_asked_for() -> None:
    """One microsecond in the past is the past; the present is not."""
    now = at("2026-03-01")
    before = Instant(now - 1)

    publish.check_start(now, now, backdate=False)
    publish.check_start(Instant(now + 1), now, backdate=False)
    publish.check_start(before, now, backdate=True)
    with pytest.raises(RefusedError, match="--backdate"):
        publish.check_start(before, now, backdate=False)


START = at("2026-03-01")


def test_a_rule_that_sells_below_cost_is_refused_unless_it_may() -> None:
    """However the rule came about: the quote itself is judged."""
    loss = Margin(MarginKind.MARKUP, -100_000)
    prices = book("cost m input 0.03 output 0.12 from 2026-03-01")
    refused = prices.with_margin_rule(MarginRule("margin_9", Scope(), loss, False, START, START))
    allowed = prices.with_margin_rule(MarginRule("margin_9", Scope(), loss, True, START, START))

    publish.check_prices(allowed, [("m", None)], START)
    with pytest.raises(RefusedError, match=r"m: input, cached_input, output, reasoning .* below cost .*--allow-loss"):
        publish.check_prices(refused, [("m", None)], START)


def test_prices_are_judged_at_every_later_start_too() -> None:
    """A rule that is fine today and breaks the limit under a cost that is scheduled is refused today."""
    prices = book(
        """
    cost    m       input 1     output 1  from 2026-03-01
    cost    m       input 8000  output 1  from 2026-05-01
    margin  global  30%                   from 2026-03-01
    """
    )

    with pytest.raises(RefusedError, match=r"m: input, cached_input would be beyond .* 2026-05-01T00:00:00Z"):
        publish.check_prices(prices, [("m", None)], START)
    with pytest.raises(RefusedError, match="2026-05-02"):
        publish.check_prices(prices, [("m", None)], at("2026-05-02"))


def test_prices_of_the_past_are_not_judged() -> None:
    """What was is history; only what can still be sold matters."""
    prices = book(
        """
    cost    m       input 8000  output 1  from 2026-03-01
    cost    m       input 1     output 1  from 2026-05-01
    """,
        default="30%",
    )

    publish.check_prices(prices, [("m", None)], at("2026-05-01"))


def test_a_cost_is_never_rounded_away_to_nothing() -> None:
    """Even where a loss is allowed: 0.4 picounits a token would be published as 0."""
    prices = book("cost m input 0.000001 output 1 from 2026-03-01\nmargin global -60% from 2026-03-01")

    with pytest.raises(RefusedError, match="m: input, cached_input would be sold for 0"):
        publish.check_prices(prices, [("m", None)], START)


def test_a_model_without_a_cost_has_no_price_to_judge() -> None:
    """A rule may be made before the cost is."""
    publish.check_prices(book("margin model:m 30% from 2026-03-01"), [("m", None)], START)


def test_a_cost_is_judged_under_the_rules_of_every_customer() -> None:
    """One customer's high margin can break the limit that all others keep."""
    prices = book("cost m input 1000 output 1 from 2026-03-01\nmargin acme 900% from 2026-03-01")
    pairs = publish.affected_by_cost(prices, "m")

    assert pairs == [("m", None), ("m", "acme")]
    with pytest.raises(RefusedError, match="m for acme: input, cached_input would be beyond"):
        publish.check_prices(prices, pairs, START)


@pytest.mark.parametrize(
    ("scope", "pairs"),
    [
        (Scope(), [("m", None), ("n", None)]),
        (Scope(model="n"), [("n", None)]),
        (Scope(customer_id="beta"), [("m", "beta"), ("n", "beta")]),
        (Scope("x", "beta"), [("x", "beta")]),
    ],
)
def test_a_rule_affects_the_models_and_the_customer_of_its_scope(scope: Scope, pairs: list[publish.Pair]) -> None:
    """Customers with rules of their own are not asked again where the scope names none."""
    prices = book(
        """
    cost    m     input 1 output 1  from 2026-03-01
    cost    n     input 1 output 1  from 2026-04-01
    margin  acme  10%               from 2026-03-01
    """
    )

    assert publish.affected_by_rule(prices, scope) == pairs
