"""What a request may cost at most, and how much of it an amount affords.

Invariant: a request whose prompt has at most the given tokens, and each of whose outputs at most `tokens`, never costs
more than `Need.amount(tokens)`. Parts of a prompt or an answer with a price of their own (cached, images, reasoning)
may be dearer than their whole, so the dearest price counts for all.
"""

from collections.abc import Iterable
from typing import NamedTuple

from billing.limits import TOKENS_PER_EVENT_MAX
from billing.money import Pico, charge
from billing.pricing.quote import UnitPrices


class Need(NamedTuple):
    """What a request needs of a customer's credit: `fixed` for its prompt and fee, `per_token` for each token allowed.

    `per_token` is for all outputs together, and `tokens` is what the client allows each of them.
    """

    fixed: Pico
    per_token: Pico
    tokens: int

    def amount(self, tokens: int) -> Pico:
        """Return the worst case when each output may have so many tokens."""
        return Pico(self.fixed + tokens * self.per_token)

    @property
    def most(self) -> Pico:
        """What the request needs as it was asked."""
        return self.amount(self.tokens)

    @property
    def least(self) -> Pico:
        """What it needs to begin at all: one token for each output."""
        return self.amount(1)


class Part(NamedTuple):
    """An amount that falls on one lease."""

    lease_id: str
    amount: Pico


def worst_case(price: UnitPrices, *, prompt_tokens_max: int, tokens: int, outputs: int) -> Need:
    """Return what a request needs; servers generate one token even where 0 are allowed (llama.cpp, measured)."""
    assert outputs >= 1, "a request has an output"
    prompt = min(prompt_tokens_max, TOKENS_PER_EVENT_MAX)
    return Need(
        fixed=Pico(
            charge(prompt, max(price.input, price.cached_input, price.image_input, price.audio_input)) + price.request
        ),
        per_token=charge(outputs, max(price.output, price.reasoning)),
        tokens=max(1, min(tokens, TOKENS_PER_EVENT_MAX // outputs)),
    )


def affordable_tokens(need: Need, available: int) -> int:
    """Return how many tokens each output may have, at most what was asked; 0 where not even one is affordable."""
    if available >= need.most:
        return need.tokens
    if available < need.least:
        return 0
    return (available - need.fixed) // need.per_token


def spread(amount: int, parts: Iterable[Part]) -> tuple[tuple[Part, ...], Pico]:
    """Lay an amount on parts in their order; return what falls on each, and what they can not bear."""
    taken = []
    for part in parts:
        if amount <= 0:
            break
        share = min(amount, part.amount)
        if share > 0:
            taken.append(Part(part.lease_id, Pico(share)))
            amount -= share
    return tuple(taken), Pico(max(0, amount))
