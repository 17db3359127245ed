"""The small language of pricing tests, which an accountant can read: costs, margins, and what events come to.

    cost    qwen3.5-9b  input 0.0300  output 0.1200                from 2026-03-01T00
    margin  global      30%                                        from 2026-03-01T00
    margin  acme        margin:40%                                 from 2026-03-02T00   // a customer's own
    event   acme  qwen3.5-9b  2026-03-01T12  input 1000  output 500  = 0.000117000000 usd

One statement a line; what follows `//` is a remark. The subject of a margin is `global`, `model:NAME`, a
customer, or CUSTOMER/MODEL; `none` removes it. A cost may have `cached_input`, `reasoning` and `request`,
an event `cached` and `reasoning`. An event is worth an amount, or `refused` where nothing is priced, and may
name its cost to us in brackets: `= 0.000117000000 usd (cost 0.000090000000)`. Versions are recorded in the
order of their lines.

Invariant: `check` compares every event, and fails with all that differ, not only with the first.
"""

import re

from billing.clock import Instant, parse_instant
from billing.money import Pico, amount_text, parse_amount, parse_rate
from billing.pricing.book import PriceBook
from billing.pricing.margins import MarginRule, Scope, parse_margin
from billing.pricing.rates import CostRate
from billing.usage import Usage

CURRENCY = "usd"
_EVENT = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+(.*?)=\s*(refused|\S+ usd)(?:\s+\(cost (\S+)\))?")


def at(text: str) -> Instant:
    """The instant that a text names, such as "2026-03-01T12"; UTC."""
    return parse_instant(text, Instant(0))


def usd(text: str) -> Pico:
    """The amount that a text names, such as "0.0375"."""
    return parse_amount(text)


def numbers(text: str) -> dict[str, str]:
    """The pairs of a text such as "input 0.03 output 0.12"."""
    words = text.split()
    assert len(words) % 2 == 0, f"names and numbers in turn, not {text!r}"
    return dict(zip(words[::2], words[1::2], strict=True))


def cost_rate(model: str, text: str, *, number: int = 0) -> CostRate:
    """A cost from a text such as "input 0.03 output 0.12 from 2026-03-01", recorded at `number`."""
    given = numbers(text)
    start = at(given.pop("from"))
    request = usd(given.pop("request", "0"))
    rates = {name: parse_rate(value) for name, value in given.items()}
    rate = CostRate(
        id=f"cost_{number:04d}",
        model=model,
        input=rates.pop("input"),
        cached_input=rates.pop("cached_input", None),
        output=rates.pop("output"),
        reasoning=rates.pop("reasoning", None),
        request=request,
        effective_from=start,
        recorded_at=Instant(number),
    )
    assert not rates, f"no such token type: {', '.join(rates)}"
    return rate


def margin_rule(subject: str, margin: str, start: str, *, number: int = 0) -> MarginRule:
    """A margin rule from its words, recorded at `number`."""
    return MarginRule(
        id=f"margin_{number:04d}",
        scope=_scope(subject),
        margin=None if margin == "none" else parse_margin(margin, allow_loss=True, force=True),
        allow_loss=margin.startswith("-"),
        effective_from=at(start),
        recorded_at=Instant(number),
    )


def _scope(subject: str) -> Scope:
    if subject == "global":
        return Scope()
    if subject.startswith("model:"):
        return Scope(model=subject.removeprefix("model:"))
    customer, _, model = subject.partition("/")
    return Scope(model or None, customer)


def book(table: str, *, default: str = "0%") -> PriceBook:
    """The price book of a table's costs and margins."""
    rates: list[CostRate] = []
    rules: list[MarginRule] = []
    for number, (kind, words) in enumerate(_statements(table)):
        if kind == "cost":
            model, _, rest = words.partition(" ")
            rates.append(cost_rate(model, rest, number=number))
        elif kind == "margin":
            subject, margin, keyword, start = words.split()
            assert keyword == "from", f"`from` and an instant, not {keyword!r}"
            rules.append(margin_rule(subject, margin, start, number=number))
    return PriceBook(rates, rules, parse_margin(default), CURRENCY)


def check(table: str, *, default: str = "0%") -> None:
    """Price every event of a table, and fail with each that comes to something else than it says."""
    prices = book(table, default=default)
    events = [words for kind, words in _statements(table) if kind == "event"]
    assert events, "a table without events checks nothing"
    faults = [fault for words in events for fault in _faults(prices, words)]
    assert not faults, "\n" + "\n".join(faults)


def _faults(prices: PriceBook, words: str) -> list[str]:
    match = _EVENT.fullmatch(words)
    assert match is not None, f"no event: {words!r}"
    customer, model, instant, tokens, expected, expected_cost = match.groups()
    quote = prices.quote(model, customer, at(instant))
    if quote is None:
        return [] if expected == "refused" else [f"{words}\n    is refused"]
    usage = _usage(tokens)
    found = f"{amount_text(quote.price.charge(usage))} {CURRENCY}"
    faults = [] if found == expected else [f"{words}\n    comes to {found}"]
    found_cost = amount_text(quote.cost.charge(usage))
    if expected_cost not in {None, found_cost}:
        faults.append(f"{words}\n    costs {found_cost}")
    return faults


def _usage(text: str) -> Usage:
    given = {name: int(value) for name, value in numbers(text).items()}
    usage = Usage(
        input_tokens=given.pop("input", 0),
        output_tokens=given.pop("output", 0),
        cached_input_tokens=given.pop("cached", 0),
        reasoning_tokens=given.pop("reasoning", 0),
    )
    assert not given, f"no such token type: {', '.join(given)}"
    return usage


def _statements(table: str) -> list[tuple[str, str]]:
    """The kind and the words of each line, without remarks and empty lines."""
    lines = (line.partition("//")[0].strip() for line in table.splitlines())
    statements = [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line]
    unknown = {kind for kind, _ in statements} - {"cost", "margin", "event"}
    assert not unknown, f"no such statement: {', '.join(sorted(unknown))}"
    return statements
