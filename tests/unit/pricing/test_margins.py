"""Margins: their texts, their arithmetic by hand, which rule wins, and how that is explained."""

import pytest

from billing.clock import Instant
from billing.errors import RefusedError, UsageError
from billing.money import Pico, PicoPerToken, parse_rate, rate_text
from billing.pricing import margins
from billing.pricing.margins import Margin, MarginKind, MarginRule, Scope, Verdict, parse_margin
from tests.tables import at, book, cost_rate, margin_rule


@pytest.mark.parametrize(
    ("text", "kind", "share_ppm"),
    [
        ("30%", MarginKind.MARKUP, 300_000),
        ("0%", MarginKind.MARKUP, 0),
        ("-0%", MarginKind.MARKUP, 0),
        ("12.5%", MarginKind.MARKUP, 125_000),
        ("0.0001%", MarginKind.MARKUP, 1),
        ("7.12500%", MarginKind.MARKUP, 71_250),
        ("1000%", MarginKind.MARKUP, 10_000_000),
        ("margin:40%", MarginKind.MARGIN, 400_000),
        ("margin:33.3333%", MarginKind.MARGIN, 333_333),
        (" 30% ", MarginKind.MARKUP, 300_000),
    ],
)
def test_a_margin_is_read_exactly(text: str, kind: MarginKind, share_ppm: int) -> None:
    """Four decimals of a percent are millionths."""
    assert parse_margin(text) == Margin(kind, share_ppm)


@pytest.mark.parametrize("text", ["30%", "0%", "12.5%", "0.0001%", "margin:40%", "margin:33.3333%", "1000%"])
def test_a_margin_is_written_as_it_was_read(text: str) -> None:
    """What the admin wrote is what events and listings show."""
    assert str(parse_margin(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "30",
        "0.3",
        "",
        "%",
        "30 %",
        "1e2%",
        "markup:30%",
        "Margin:40%",
        "+30%",
        "30%%",
        "٣٠%",
        "nan%",
        "1,5%",
        ".5%",
    ],
)
def test_what_is_no_margin_is_refused_with_the_two_forms(text: str) -> None:
    """A bare 30 could mean 30 times the price: the sign says what it is."""
    with pytest.raises(UsageError, match=r"30% .* margin:40%"):
        parse_margin(text)


def test_a_fifth_decimal_is_refused_and_not_rounded() -> None:
    """Nothing is rounded but a published rate."""
    with pytest.raises(UsageError, match="more than 4 decimals"):
        parse_margin("33.33333%")


@pytest.mark.parametrize("text", ["-0.0001%", "-10%", "margin:-5%", "-100%"])
def test_a_negative_margin_is_refused_unless_a_loss_is_allowed(text: str) -> None:
    """It sells below cost."""
    with pytest.raises(RefusedError, match="--allow-loss"):
        parse_margin(text)


def test_a_negative_margin_is_read_where_a_loss_is_allowed() -> None:
    """A loss leader is the admin's decision, once it is said."""
    assert parse_margin("-10%", allow_loss=True) == Margin(MarginKind.MARKUP, -100_000)
    assert str(parse_margin("-0.5%", allow_loss=True)) == "-0.5%"
    assert str(parse_margin("margin:-25%", allow_loss=True)) == "margin:-25%"


@pytest.mark.parametrize("text", ["-100%", "-150%"])
def test_a_margin_that_gives_everything_away_is_never_taken(text: str) -> None:
    """Nothing is free by accident, and by a margin it is not free at all."""
    with pytest.raises(RefusedError, match="give the tokens away"):
        parse_margin(text, allow_loss=True, force=True)


@pytest.mark.parametrize("text", ["margin:100%", "margin:100.0001%", "margin:250%"])
def test_no_price_consists_of_its_margin_alone(text: str) -> None:
    """Cost ÷ (1 − 100 %) is infinite."""
    with pytest.raises(RefusedError, match="below 100%"):
        parse_margin(text, force=True)


@pytest.mark.parametrize("text", ["1000.0001%", "3000%", "margin:91%", "margin:99.9999%"])
def test_a_price_above_eleven_times_the_cost_is_taken_for_a_slip(text: str) -> None:
    """30.00% typed without its point; as a share of the price the same limit lies at 10/11."""
    with pytest.raises(RefusedError, match="--force"):
        parse_margin(text)
    assert str(parse_margin(text, force=True)) == text


def test_a_margin_of_ten_elevenths_of_the_price_is_the_last_usual_one() -> None:
    """Its price is just below 11 times the cost."""
    assert parse_margin("margin:90.909%").share_ppm == 909_090


def test_a_margin_beyond_all_sense_is_refused_even_by_force() -> None:
    """The column of the ledger has a limit, and so has the text."""
    assert parse_margin("100000%", force=True).share_ppm == 1_000_000_000
    with pytest.raises(RefusedError, match="beyond the largest margin, 100000%"):
        parse_margin("100000.0001%", force=True)


@pytest.mark.parametrize(
    ("cost", "margin", "price"),
    [
        ("0.03", "30%", "0.0390"),
        ("0.0375", "33.3333%", "0.0500"),  # 0.04999998750 rounds up
        ("0.03", "margin:40%", "0.0500"),
        ("0.05", "margin:40%", "0.083333"),  # 0.08333… rounds down
        ("0.04", "margin:40%", "0.066667"),  # 0.06666… rounds up
        ("0.000001", "50%", "0.000002"),  # 0.0000015, a half, rounds up
        ("0.000001", "49.9999%", "0.000001"),
        ("0.12", "0%", "0.1200"),
        ("0.12", "margin:0%", "0.1200"),
        ("0.12", "-25%", "0.0900"),
        ("0.12", "margin:-20%", "0.1000"),
        ("0", "30%", "0.0000"),
    ],
)
def test_a_price_is_the_cost_with_its_margin_rounded_half_up(cost: str, margin: str, price: str) -> None:
    """Each was worked out by hand."""
    applied = margins.apply(parse_rate(cost), parse_margin(margin, allow_loss=True))

    assert rate_text(applied) == price


def test_the_fee_of_a_request_bears_the_margin_too() -> None:
    """0.0001 ÷ 0.6 is 0.000166666666…7 at 12 decimals."""
    assert margins.apply_to_fee(Pico(100_000_000), parse_margin("margin:40%")) == 166_666_667


def test_it_is_known_whether_a_price_was_rounded() -> None:
    """The admin is shown which prices are not the exact ones."""
    assert margins.is_exact(30_000, parse_margin("30%"))
    assert margins.is_exact(30_000, parse_margin("margin:40%"))
    assert not margins.is_exact(50_000, parse_margin("margin:40%"))


def test_a_margin_without_a_positive_price_can_not_be_made() -> None:
    """The type refuses what the reader would."""
    with pytest.raises(AssertionError):
        Margin(MarginKind.MARKUP, -1_000_000)
    with pytest.raises(AssertionError):
        Margin(MarginKind.MARGIN, 1_000_000)


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        (Scope(), "global"),
        (Scope(model="m"), "model"),
        (Scope(customer_id="c"), "customer"),
        (Scope("m", "c"), "customer+model"),
    ],
)
def test_a_scope_has_a_name(scope: Scope, name: str) -> None:
    """It is shown in listings and reasons."""
    assert str(scope) == name


NOON = at("2026-03-01T12")


def winning(table: str, model: str = "m", customer: str | None = "acme", instant: Instant = NOON) -> str:
    """The margin that decides in a table, "default" if no rule does."""
    rule = book(table).winner(model, customer, instant)
    return "default" if rule is None else str(rule.margin)


LADDER = (
    "margin global 1% from 2026-03-01",
    "margin model:m 2% from 2026-03-01",
    "margin acme 3% from 2026-03-01",
    "margin acme/m 4% from 2026-03-01",
)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_each_more_specific_rule_overrules_the_ones_before(step: int) -> None:
    """Global, then model, then customer, then customer and model; whichever was recorded first."""
    rules = LADDER[: step + 1]

    assert winning("\n".join(rules)) == f"{step + 1}%"
    assert winning("\n".join(reversed(rules))) == f"{step + 1}%"


def test_a_rule_of_another_model_or_customer_does_not_apply() -> None:
    """Names are exact."""
    others = """
    margin model:M   2%  from 2026-03-01
    margin model:m*  2%  from 2026-03-01
    margin Acme      3%  from 2026-03-01
    margin acme/n    4%  from 2026-03-01
    margin other/m   4%  from 2026-03-01
    """

    assert winning(others) == "default"


def test_customer_rules_do_not_reach_those_without_a_name() -> None:
    """The list price knows no customer."""
    assert winning("\n".join(LADDER), customer=None) == "2%"


def test_a_removed_rule_makes_its_scope_silent() -> None:
    """From its instant on the less specific rule decides, until a new one is set."""
    table = "\n".join(
        (
            *LADDER,
            "margin acme/m none from 2026-03-02",
            "margin acme   none from 2026-03-03",
            "margin model:m none from 2026-03-04",
            "margin global none from 2026-03-05",
            "margin acme/m 5% from 2026-03-06",
        )
    )
    days = [at(f"2026-03-0{day}") for day in range(1, 7)]

    assert [winning(table, instant=day) for day in days] == ["4%", "3%", "2%", "1%", "default", "5%"]


def explained(table: str, *, customer: str | None = "acme", instant: Instant = NOON) -> list[tuple[str, str, str]]:
    """Scope, margin and verdict of each reason."""
    reasons = book(table, default="30%").explain("m", customer, instant)
    return [
        (
            "default" if reason.rule is None else str(reason.rule.scope),
            str(reason.margin),
            reason.verdict.value,
        )
        for reason in reasons
    ]


def test_every_rule_that_could_apply_is_explained_in_order() -> None:
    """Most specific scope first, newest version first, rules of others left out."""
    table = """
    margin global   1%    from 2026-01-01
    margin global   2%    from 2026-02-01
    margin model:m  5%    from 2026-02-01
    margin model:m  none  from 2026-03-01
    margin acme     3%    from 2026-02-01
    margin acme/m   4%    from 2026-04-01
    margin other    9%    from 2026-02-01
    margin model:n  9%    from 2026-02-01
    """

    assert explained(table) == [
        ("customer+model", "4%", "scheduled"),
        ("customer", "3%", "wins"),
        ("model", "None", "removed"),
        ("model", "5%", "replaced"),
        ("global", "2%", "overruled"),
        ("global", "1%", "replaced"),
        ("default", "30%", "overruled"),
    ]


def test_the_default_margin_wins_while_no_rule_is_in_force() -> None:
    """Without any rule, and when all are removed or still to come."""
    table = """
    margin global  1%    from 2026-01-01
    margin global  none  from 2026-02-01
    margin acme    3%    from 2026-04-01
    """

    assert explained("") == [("default", "30%", "wins")]
    assert explained(table)[-1] == ("default", "30%", "wins")


def test_each_verdict_says_why() -> None:
    """The words that the admin reads."""
    table = """
    margin global   1%    from 2026-01-01
    margin model:m  none  from 2026-01-01
    margin acme     2%    from 2026-02-01
    margin acme     3%    from 2026-02-15
    margin acme/m   4%    from 2026-04-01
    """
    reasons = book(table).explain("m", "acme", NOON)

    assert [reason.because for reason in reasons] == [
        "begins at 2026-04-01T00:00:00Z",
        "the most specific rule in force",
        "by margin_0003 from 2026-02-15T00:00:00Z",
        "the model scope has no rule since 2026-01-01T00:00:00Z",
        "a customer rule is more specific",
        "a customer rule is in force",
    ]


def test_a_rule_that_was_corrected_before_its_start_names_its_correction() -> None:
    """It does not look as if it were still to come."""
    table = """
    margin acme  3%  from 2026-04-01
    margin acme  4%  from 2026-04-01
    """
    scheduled, replaced, _default = book(table).explain("m", "acme", NOON)

    assert (scheduled.verdict, scheduled.because) == (Verdict.SCHEDULED, "begins at 2026-04-01T00:00:00Z")
    assert (replaced.verdict, replaced.because) == (
        Verdict.REPLACED,
        "by margin_0001 from 2026-04-01T00:00:00Z",
    )


def test_all_unit_prices_bear_the_same_margin() -> None:
    """Parts that follow their whole in cost follow it in price."""
    costs = cost_rate("m", "input 0.03 output 0.12 request 0.001 from 2026-03-01").unit_prices

    priced = margins.apply_to_all(costs, parse_margin("10%"))

    assert priced.input == priced.cached_input == PicoPerToken(33_000)
    assert priced.output == priced.reasoning == PicoPerToken(132_000)
    assert priced.request == Pico(1_100_000_000)


def test_a_rule_from_the_table_language_is_what_it_says() -> None:
    """The anchor of the tests above: their own language."""
    rule = margin_rule("acme/m", "margin:12.5%", "2026-03-01T12", number=7)

    assert rule == MarginRule(
        id="margin_0007",
        scope=Scope("m", "acme"),
        margin=Margin(MarginKind.MARGIN, 125_000),
        allow_loss=False,
        effective_from=NOON,
        recorded_at=Instant(7),
    )
