"""The rate card reads back what it wrote, and says what is wrong with what others wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import RefusedError, UsageError
from billing.limits import MARGIN_PPM_MAX, MODEL_NAME_CHARS_MAX
from billing.pricing.margins import Margin, MarginKind, parse_margin
from billing.pricing.rate_card import Card, Entry, parse, render
from tests.tables import cost_rate

names = st.text(min_size=1, max_size=MODEL_NAME_CHARS_MAX)
models = names.filter(lambda name: name == name.strip() and name.isprintable() and not set("*?") & set(name))
margins = st.one_of(
    st.integers(-999_999, MARGIN_PPM_MAX).map(lambda ppm: Margin(MarginKind.MARKUP, ppm)),
    st.integers(-MARGIN_PPM_MAX, 999_999).map(lambda ppm: Margin(MarginKind.MARGIN, ppm)),
)
entries = st.builds(
    lambda margin, model, customer, allow_loss, floor: Entry(
        margin, model, customer, allow_loss or margin.share_ppm < 0, floor
    ),
    margins,
    st.none() | models,
    st.none() | names,
    st.booleans(),
    st.none() | margins.filter(lambda margin: margin.share_ppm >= 0),
)


@given(st.lists(entries, max_size=5, unique_by=lambda entry: (entry.model, entry.customer)), st.text(max_size=20))
def test_what_is_written_is_read_back(card: list[Entry], header: str) -> None:
    """Whatever the names: quotes, backslashes, controls, other scripts."""
    printable = "".join(char for char in header if char.isprintable())
    assert parse(render(card, printable), force=True) == Card(tuple(card), ())


def test_a_card_in_words() -> None:
    """As a person writes it."""
    card = parse("""
        [[margin]]
        margin = "30%"

        [[margin]]
        customer = "acme"
        model = "qwen3.5-9b"
        margin = "margin:40%"
        allow_loss = true

        [[cost]]
        model = "qwen3.5-9b"
        input = "0.03"
        output = "0.12"
        request = "0.001"
    """)
    assert card.margins == (
        Entry(parse_margin("30%")),
        Entry(parse_margin("margin:40%"), "qwen3.5-9b", "acme", allow_loss=True),
    )
    (cost,) = card.costs
    known = cost_rate("qwen3.5-9b", "input 0.03 output 0.12 request 0.001 from 1970-01-01")
    assert cost.unit_prices == known.unit_prices
    assert [entry.subject for entry in card.margins] == ["all", "customer 'acme' model 'qwen3.5-9b'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("margin", "no TOML"),
        ('[[margins]]\nmargin = "1%"', "unknown key 'margins'; did you mean 'margin'"),
        ('[margin]\nmargin = "1%"', r"write \[\[margin\]\] in double brackets"),
        ('[[margin]]\nmargn = "1%"', r"\[\[margin\]\] number 1 has the unknown key 'margn'; did you mean 'margin'"),
        ('[[margin]]\nmodel = "m"', "number 1 says no margin"),
        ("[[margin]]\nmargin = 0.3", "write margin as a text in quotes"),
        ('[[margin]]\nmargin = "30"', "'30' is no margin"),
        ('[[margin]]\nmargin = "1%"\nmodel = "qwen*"', "there are no wildcards"),
        ('[[margin]]\nmargin = "1%"\nallow_loss = "yes"', "allow_loss is true or false"),
        ('[[margin]]\nmargin = "1%"\n[[margin]]\nmargin = "2%"', "two tables for all"),
        ('[[cost]]\nmodel = "m"\ninput = "1"', "says no output"),
        ('[[cost]]\nmodel = "m"\ninput = 1\noutput = "1"', "write input as a text in quotes"),
        ('[[cost]]\ninput = "1"\noutput = "1"', "says no model"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    """And with what to write instead."""
    with pytest.raises(UsageError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ['[[margin]]\nmargin = "-1%"', '[[margin]]\nmargin = "2000%"'])
def test_a_card_is_judged_as_the_command_line_is(text: str) -> None:
    """A loss needs allow_loss, an unusual margin --force."""
    with pytest.raises(RefusedError):
        parse(text)
