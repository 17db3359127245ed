"""What a prepaid request needs of its customer's credit, and the limits that it is forwarded with: pure.

Invariants (I7): no server generates more for a clamped request than the tokens that are held for it, and no prompt has
more tokens than `prompt_tokens_max`. The first is exact, since the clamp stands in every field of the client's that
limits, and in `max_tokens` where the server at hand may not know those. The second is a bound that needs no tokenizer:
a token of text is at least one byte of the body. What is not text (pictures, sound) is bounded by what servers make of
it at most. Should a prompt be longer all the same, the ledger finds credit for it or writes it off
(`billing/ledger/charges.py`).
"""

from typing import Any

from billing.credit.holds import Need, worst_case
from billing.money import Pico
from billing.pricing.quote import UnitPrices
from billing.tokens.prompt import media_parts
from proxy.meter import endpoints
from proxy.relay.asks import LIMIT_FIELDS
from proxy.relay.request import LIMIT_FIELDS as CHAT_LIMIT_FIELDS
from proxy.relay.request import OUTPUT_FIELDS, Ask

TEMPLATE_TOKENS_MAX = 1_024
"""What a chat template adds of its own: Qwen3.5's says about 200 tokens around tools, gpt-oss and Llama 3 less. What it
adds to each message is less than the bytes of JSON around that message."""

MEDIA_TOKENS_MAX = 16_384
"""What one picture, recording or file becomes at most: Qwen-VL's default limit, larger than the others'."""

PAIR_TOKENS = 8
"""What a reranker writes around a query and a document."""


def need_of(ask: Ask, price: UnitPrices, prompt_tokens_max: int, tokens_default: int) -> Need:
    """Return what a request needs; where it sets no limit of its own it may have `tokens_default` for each output."""
    outputs = outputs_of(ask)
    allowed = tokens_default if ask.output_tokens_max is None else ask.output_tokens_max // outputs
    need = worst_case(price, prompt_tokens_max=prompt_tokens_max, tokens=allowed, outputs=outputs)
    return need if generates(ask) else need._replace(per_token=Pico(0))


def generates(ask: Ask) -> bool:
    """Whether the request makes a model write anything; else only its prompt costs."""
    return ask.endpoint not in endpoints.PROMPT_ONLY


def outputs_of(ask: Ask) -> int:
    """Return how many outputs a server may generate for the request: more than it answers with, for `best_of`."""
    if ask.endpoint not in endpoints.OPENAI_COMPLETIONS:
        return 1
    return ask.outputs.prompts * max([ask.body.get(name) or 1 for name in OUTPUT_FIELDS])


def prompt_tokens_max(ask: Ask, body_bytes: int) -> int:
    """Return what the prompt has at most, by the length of the client's body.

    Reading the conversation to find pictures costs more than all the rest (7 of 18 µs), and most are plainly text.
    """
    media = 0 if _is_plain(ask.body) else media_parts(ask.endpoint, ask.body)
    return body_bytes + TEMPLATE_TOKENS_MAX + media * MEDIA_TOKENS_MAX + _repeated_query(ask)


def _is_plain(body: dict[str, Any]) -> bool:
    """Whether all messages are texts; pictures are parts of a content that is a list, or in `images` (Ollama)."""
    messages = body.get("messages")
    if not isinstance(messages, list) or "images" in body or "system" in body:
        return False
    return all(
        isinstance(message, dict) and isinstance(message.get("content"), str) and "images" not in message
        for message in messages
    )


def counted_tokens_max(ask: Ask, counted: int) -> int:
    """Return what the prompt has at most, now that it was counted: an eighth more, for templates that are not known."""
    return counted + counted // 8 + TEMPLATE_TOKENS_MAX // 16 + media_parts(ask.endpoint, ask.body) * MEDIA_TOKENS_MAX


def _repeated_query(ask: Ask) -> int:
    """A reranker reads the query again with each document."""
    documents = ask.body.get("documents", ask.body.get("texts"))
    if ask.endpoint != endpoints.RERANK or not isinstance(documents, list):
        return 0
    query = ask.body.get("query")
    return len(documents) * (PAIR_TOKENS + (len(query.encode(errors="replace")) if isinstance(query, str) else 0))


def clamped(ask: Ask, tokens: int, kind: str) -> Ask:
    """Limit each output to so many tokens, on a server of this kind, in the fields that the client used."""
    if not generates(ask):
        return ask
    limit = tokens * outputs_of(ask)
    if ask.endpoint in endpoints.OLLAMA:
        options = ask.body.get("options")
        limited = _limited(options if isinstance(options, dict) else {}, ("num_predict",), "num_predict", tokens)
        return ask._replace(body={**ask.body, "options": limited}, output_tokens_max=limit)
    names = CHAT_LIMIT_FIELDS if ask.endpoint in endpoints.OPENAI_COMPLETIONS else LIMIT_FIELDS
    own = "max_output_tokens" if ask.endpoint == endpoints.RESPONSES else "max_tokens"
    again = ask._replace(body=_limited(ask.body, names, own, tokens), output_tokens_max=limit)
    if again.limit_on(kind) is None:  # none of the client's fields is one that this server is known to obey
        again = again._replace(body={**again.body, own: tokens})
    return again


def _limited(part: dict[str, Any], names: tuple[str, ...], own: str, tokens: int) -> dict[str, Any]:
    """Clamp each limit that is there (what is not positive means none on some server), or set the protocol's own."""
    given = [name for name in names if part.get(name) is not None]
    if not given:
        return {**part, own: tokens}
    return {**part, **{name: min(part[name], tokens) if part[name] > 0 else tokens for name in given}}
