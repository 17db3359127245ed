"""The rate card: margins (and, to simulate, costs) as a TOML text that lives in git. Pure: text in, values out.

    [[margin]]                    # for all, since it names nobody
    margin = "30%"
    floor = "10%"                 # nothing is sold at less, whatever a more specific rule says

    [[margin]]
    customer = "acme"
    model = "qwen3.5-9b"
    margin = "margin:40%"
    fixed = { output = "0.10" }   # a price per 1M tokens, whatever the cost is; the rest follows the margin
    minimum = { input = "0.02" }  # nothing under this rule is sold for less

    [[plan]]                      # what a plan includes in each period, and its volume tiers
    name = "team"
    per = "month"
    included_tokens = 1000000     # or included_amount = "20"
    tiers = ["10000000=10%"]

    [[cost]]                      # only for `weir simulate`
    model = "qwen3.5-9b"
    input = "0.03"
    output = "0.12"

Amounts and shares are texts in quotes, never TOML numbers: those with a fraction would be floats. A card is complete:
applying it ends every rule that it does not name. A scope stands in it once. If it has any [[plan]], it ends the terms
of all plans that it does not name; without one it leaves them as they are.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from billing.calendar import Per
from billing.clock import Instant
from billing.errors import UsageError
from billing.money import amount_number, parse_amount
from billing.pricing import publish
from billing.pricing.margins import Margin, parse_margin
from billing.pricing.rates import CostRate
from billing.pricing.stated import Stated, text_of
from billing.pricing.terms import Terms, discount_text, parse_tier

MARGIN_KEYS = ("model", "plan", "customer", "margin", "fixed", "minimum", "floor", "allow_loss")
COST_KEYS = ("model", "input", "cached_input", "image_input", "audio_input", "output", "reasoning", "request")
PLAN_KEYS = ("name", "per", "included_tokens", "included_amount", "tiers")
TABLES = ("margin", "plan", "cost")


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule of a card; whom it is for is named as in the file, the customer by name or id."""

    margin: Margin
    model: str | None = None
    customer: str | None = None
    allow_loss: bool = False
    floor: Margin | None = None
    plan: str | None = None
    fixed: Stated = ()
    minimum: Stated = ()

    @property
    def subject(self) -> str:
        """Say whom the rule is for."""
        parts = [("customer", self.customer), ("plan", self.plan), ("model", self.model)]
        return " ".join(f"{name} {value!r}" for name, value in parts if value is not None) or "all"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """A plan, by its name or id, and its terms."""

    name: str
    terms: Terms


@dataclass(frozen=True, slots=True)
class Card:
    """What a file says: every margin rule, terms of plans, and costs that hold from the beginning of time."""

    margins: tuple[Entry, ...] = ()
    costs: tuple[CostRate, ...] = ()
    plans: tuple[PlanEntry, ...] = ()


def parse(text: str, *, force: bool = False) -> Card:
    """Read a card. Raises UsageError with the table's number and what to write, RefusedError as `weir margin set` does.

    `force` takes unusual margins and rates, as it does there.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the rate card is no TOML: {error}") from None
    _refuse_unknown("the rate card", raw, TABLES)
    entries = tuple(_entry(table, where, force=force) for where, table in _tables(raw, "margin"))
    _refuse_repeated(((entry.model, entry.plan), entry.customer, entry.subject) for entry in entries)
    costs = tuple(_cost(table, where, force=force) for where, table in _tables(raw, "cost"))
    _refuse_repeated((rate.model, None, f"the cost of {rate.model!r}") for rate in costs)
    plans = tuple(_plan(table, where) for where, table in _tables(raw, "plan"))
    _refuse_repeated((entry.name, None, f"the terms of plan {entry.name!r}") for entry in plans)
    return Card(entries, costs, plans)


def render(entries: Iterable[Entry], header: str, plans: Iterable[PlanEntry] = ()) -> str:
    """Write a card that `parse` reads back to the same; `header` becomes its first lines, as remarks."""
    blocks = ["\n".join(f"# {line}" for line in header.splitlines())]
    for entry in entries:
        lines = ["[[margin]]"]
        lines += [
            f"{name} = {_quoted(value)}" for name in ("customer", "plan", "model") if (value := getattr(entry, name))
        ]
        lines.append(f"margin = {_quoted(str(entry.margin))}")
        lines += [f"floor = {_quoted(str(entry.floor))}"] if entry.floor is not None else []
        for name, prices in (("fixed", entry.fixed), ("minimum", entry.minimum)):
            pairs = ", ".join(f"{unit} = {_quoted(text_of(unit, price))}" for unit, price in prices)
            lines += [f"{name} = {{ {pairs} }}"] if prices else []
        lines += ["allow_loss = true"] if entry.allow_loss else []
        blocks.append("\n".join(lines))
    for plan in plans:
        terms = plan.terms
        lines = ["[[plan]]", f"name = {_quoted(plan.name)}", f"per = {_quoted(terms.per.value)}"]
        lines += [f"included_tokens = {terms.included_tokens}"] if terms.included_tokens else []
        amount = _quoted(amount_number(terms.included_amount))
        lines += [f"included_amount = {amount}"] if terms.included_amount else []
        tiers = ", ".join(_quoted(f"{tier.above}={discount_text(tier.discount_ppm)}") for tier in terms.tiers)
        blocks.append("\n".join(lines + ([f"tiers = [{tiers}]"] if tiers else [])))
    return "\n\n".join(blocks) + "\n"


def _quoted(text: str) -> str:
    r"""Write a basic string of TOML 1.0: quotes, backslashes and what is not printable are escaped as \U."""
    return (
        '"'
        + "".join(char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text)
        + '"'
    )


def _tables(raw: Mapping[str, object], name: str) -> list[tuple[str, Mapping[str, object]]]:
    tables = raw.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"write [[{name}]] in double brackets above each {name}")
    return [(f"[[{name}]] number {number}", table) for number, table in enumerate(tables, start=1)]


def _refuse_unknown(where: str, table: Mapping[str, object], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"{where} has the unknown key {key!r}; {hint}")


def _refuse_repeated(subjects: Iterable[tuple[object, object, str]]) -> None:
    seen: set[tuple[object, object]] = set()
    for first, second, name in subjects:
        if (first, second) in seen:
            raise UsageError(f"the rate card has two tables for {name}; keep one")
        seen.add((first, second))


def _text(table: Mapping[str, object], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f'{where}: write {key} as a text in quotes, such as {key} = "{value}"')
    return value


def _texts(table: Mapping[str, object], key: str, where: str) -> dict[str, str]:
    """Return a table of texts, empty where there is none."""
    given = table.get(key, {})
    if not isinstance(given, dict):
        raise UsageError(f'{where}: write {key} = {{ output = "0.10" }}')
    return {unit: value for unit in given if (value := _text(given, unit, f"{where}: {key}")) is not None}


def _entry(table: Mapping[str, object], where: str, *, force: bool) -> Entry:
    _refuse_unknown(where, table, MARGIN_KEYS)
    margin, model = _text(table, "margin", where), _text(table, "model", where)
    allow_loss = table.get("allow_loss", False)
    fixed, minimum = (
        publish.read_stated(_texts(table, key, where), f"{where}: {key}", force=force) for key in ("fixed", "minimum")
    )
    if margin is None and not fixed:
        raise UsageError(f'{where} says no margin, such as margin = "30%"')
    if not isinstance(allow_loss, bool):
        raise UsageError(f"{where}: allow_loss is true or false")
    if model is not None:
        publish.check_model_name(model)
    chosen = publish.read_margin(margin, fixed, allow_loss=allow_loss, force=force)
    floor = _text(table, "floor", where)
    least = None if floor is None else parse_margin(floor, force=force)
    customer, plan = _text(table, "customer", where), _text(table, "plan", where)
    if customer is not None and plan is not None:
        raise UsageError(f"{where} names a customer and a plan; a rule is for one of them")
    return Entry(chosen, model, customer, allow_loss, least, plan, fixed, minimum)


def _plan(table: Mapping[str, object], where: str) -> PlanEntry:
    _refuse_unknown(where, table, PLAN_KEYS)
    name, per = _text(table, "name", where), _text(table, "per", where) or Per.MONTH.value
    tokens, tiers = table.get("included_tokens", 0), table.get("tiers", [])
    if name is None:
        raise UsageError(f"{where} says no name")
    if per not in [each.value for each in Per]:
        raise UsageError(f"{where}: per is day or month")
    if not isinstance(tokens, int) or isinstance(tokens, bool):
        raise UsageError(f"{where}: included_tokens is a whole number")
    if not isinstance(tiers, list) or not all(isinstance(tier, str) for tier in tiers):
        raise UsageError(f'{where}: write tiers = ["10000000=10%"]')
    amount = parse_amount(_text(table, "included_amount", where) or "0")
    return PlanEntry(name, Terms(Per(per), tokens, amount, tuple(sorted(parse_tier(tier) for tier in tiers))))


def _cost(table: Mapping[str, object], where: str, *, force: bool) -> CostRate:
    _refuse_unknown(where, table, COST_KEYS)

    def needed(key: str) -> str:
        value = _text(table, key, where)
        if value is None:
            raise UsageError(f"{where} says no {key}")
        return value

    model = needed("model")
    publish.check_model_name(model)
    return CostRate(
        id=f"simulated {model}",
        model=model,
        input=publish.read_rate(needed("input"), "input", force=force),
        cached_input=publish.read_rate_or_none(_text(table, "cached_input", where), "cached_input", force=force),
        output=publish.read_rate(needed("output"), "output", force=force),
        reasoning=publish.read_rate_or_none(_text(table, "reasoning", where), "reasoning", force=force),
        request=publish.read_fee(_text(table, "request", where) or "0", "request"),
        effective_from=Instant(0),
        recorded_at=Instant(0),
        image_input=publish.read_rate_or_none(_text(table, "image_input", where), "image_input", force=force),
        audio_input=publish.read_rate_or_none(_text(table, "audio_input", where), "audio_input", force=force),
    )
