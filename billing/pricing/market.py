"""What others ask for models, read from files that they publish, and beside our own prices. Pure.

Two formats are known: LiteLLM's price map (an object of models, each with `input_cost_per_token` and so on, as JSON
numbers such as 1e-07), and OpenRouter's list of models (`data`, each with `pricing` of decimal texts a token). Numbers
are read as decimals and never as floats. A price that is no whole number of picounits a token is rounded as every rate
is, by `publish_rate`. What is not priced by the token, or changes with each request (-1), is left out and counted.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from billing.clock import Instant
from billing.errors import UsageError
from billing.limits import MODEL_NAME_CHARS_MAX
from billing.money import PICO_PER_MAJOR, Pico, PicoPerToken, publish_rate

CURRENCY = "usd"
"""What both files are in."""

ENTRIES_MAX = 100_000
_PER_TOKEN_MAX = Decimal(1)
"""More than a major unit a token is a mistake, or no price."""

_EXPONENT_MIN = -40
_EXAMPLE = "sample_spec"


class Source(StrEnum):
    """Whose file it is."""

    LITELLM = "litellm"
    OPENROUTER = "openrouter"


@dataclass(frozen=True, slots=True)
class Rates:
    """Picounits a token of each type, and a request; None: as its whole."""

    input: PicoPerToken
    output: PicoPerToken
    cached_input: PicoPerToken | None
    reasoning: PicoPerToken | None
    request: Pico


@dataclass(frozen=True, slots=True)
class MarketPrice:
    """What one model costs elsewhere, from when it was imported on."""

    source: Source
    model: str
    rates: Rates
    recorded_at: Instant


@dataclass(frozen=True, slots=True)
class PriceFile:
    """What a file says: the models that it prices, and how many it has that it does not price by the token."""

    source: Source
    rates: Mapping[str, Rates]
    skipped: int


_FIELDS = {
    Source.LITELLM: (
        *("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost"),
        *("output_cost_per_reasoning_token", "input_cost_per_request"),
    ),
    Source.OPENROUTER: ("prompt", "completion", "input_cache_read", "internal_reasoning", "request"),
}


def read(content: bytes) -> PriceFile:
    """Read a price file of either kind. Raises UsageError for what is neither."""
    try:
        document = json.loads(content, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise UsageError(f"the file is not JSON: {' '.join(str(error).split())[:100]}") from None
    source, entries = _entries(document)
    rates: dict[str, Rates] = {}
    skipped = 0
    for model, priced in entries:
        found = _rates(source, priced)
        if found is None or not _is_name(model) or model in rates:
            skipped += 1
        else:
            rates[model] = found
    if not rates or len(rates) + skipped > ENTRIES_MAX:
        raise UsageError(f"the file prices no model, or more than {ENTRIES_MAX}; is it LiteLLM's or OpenRouter's?")
    return PriceFile(source, rates, skipped)


def _refuse(constant: str) -> Decimal:
    raise ValueError(f"{constant} is no number")


def _entries(document: object) -> tuple[Source, Iterator[tuple[str, Mapping[str, object]]]]:
    """Tell whose file it is, and give its models with what has their prices."""
    if isinstance(document, dict):
        listed = document.get("data")
        if isinstance(listed, list):
            return Source.OPENROUTER, _listed(listed)
        if document and all(isinstance(value, dict) for value in document.values()):
            return Source.LITELLM, ((name, value) for name, value in document.items() if name != _EXAMPLE)
    raise UsageError("the file is neither LiteLLM's price map nor OpenRouter's list of models")


def _listed(models: Iterable[object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    for each in models:
        pricing = each.get("pricing") if isinstance(each, dict) else None
        name = each.get("id") if isinstance(each, dict) else None
        yield str(name or ""), pricing if isinstance(pricing, dict) else {}


def _is_name(model: str) -> bool:
    return 0 < len(model) <= MODEL_NAME_CHARS_MAX and model.isprintable()


def _rates(source: Source, priced: Mapping[str, object]) -> Rates | None:
    """Return the rates of an entry, None if its prompts or answers are not priced by the token."""
    inward, outward, cached, reasoning, request = (_pico(priced.get(field)) for field in _FIELDS[source])
    if inward is None or outward is None:
        return None
    if source is Source.OPENROUTER:  # writes "0" for what it does not price apart
        cached, reasoning = cached or None, reasoning or None
    return Rates(
        PicoPerToken(inward),
        PicoPerToken(outward),
        None if cached is None else PicoPerToken(cached),
        None if reasoning is None else PicoPerToken(reasoning),
        Pico(request or 0),
    )


def _pico(value: object) -> int | None:
    """Return the picounits of a number or a decimal text, None for what is no price."""
    try:
        number = value if isinstance(value, Decimal) else Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return None
    if number is None or not number.is_finite() or number.adjusted() > 0:
        return None
    exponent = number.as_tuple().exponent
    if not 0 <= number <= _PER_TOKEN_MAX or not isinstance(exponent, int) or exponent < _EXPONENT_MIN:
        return None
    numerator, denominator = number.as_integer_ratio()
    return publish_rate(numerator * PICO_PER_MAJOR, denominator)


def is_same_model(own: Iterable[str], market: str) -> bool:
    """Tell whether a name of the market's is one of ours: without who offers it, whatever its case.

    "qwen/qwen3.5-9b" and "openrouter/qwen/qwen3.5-9b" are "Qwen/Qwen3.5-9B" and "qwen3.5:9b"; what the market marks as
    a variant (":free") is another offer.
    """
    return market.rsplit("/", 1)[-1].lower() in {name.rsplit("/", 1)[-1].lower().replace(":", "-") for name in own}
