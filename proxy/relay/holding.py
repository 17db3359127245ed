"""The credit of one prepaid request: held before it is sent, replaced by what it came to, or given up.

    CLOSED ─▶ ASKING ─▶ HELD ─▶ CLOSED
              waits for     settled, or given up; also while it waits
              its hold

Invariant (I7): `begin` answers once, with None when the worst case is held, and a hold ends exactly once, however the
request ends: settled by its event, or given up by `close`, which every ending of an exchange calls.

The prompt is bounded by its bytes first, which costs nothing. Only where the credit does not cover that it is counted,
and asked for again: near the end of a balance an exact count is worth a few milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from billing.credit.holds import Need, Part, spread
from billing.money import Pico, amount_number
from billing.pricing.quote import Quote
from proxy.admit.purse import Hold
from proxy.admit.purses import Answer, Purses, Short, Unavailable
from proxy.relay import affordable
from proxy.relay.refusals import Refusal, retry_after
from proxy.relay.request import Ask

_AWAY = Refusal("recording_unavailable", "credit can not be checked now; try again", headers=(retry_after(1),))
_UNKNOWN_PROMPTS = Refusal(
    "invalid_request", "`prompt_embeds` can not be used with prepaid credit: what they cost is not known before"
)


class PromptCounter(Protocol):
    """Counts prompts off the event loop."""

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        """Count; `done` is called on the event loop, always: with None if it can not be counted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What prepaid requests of this worker have in common."""

    purses: Purses
    counter: PromptCounter
    output_tokens_default: int


class Holding:
    """One request's hold, from before it exists to after it has ended."""

    __slots__ = (
        "_answer",
        "_ask",
        "_bound",
        "_customer_id",
        "_hold",
        "_is_closed",
        "_is_counted",
        "_need",
        "_quote",
        "_terms",
    )

    def __init__(self, terms: Terms, customer_id: str, quote: Quote | None, ask: Ask) -> None:
        assert quote is not None, "what has no price is not admitted"
        self._terms = terms
        self._customer_id = customer_id
        self._quote = quote
        self._ask = ask
        self._bound = 0
        self._hold: Hold | None = None
        self._is_counted = False
        self._is_closed = False
        self._answer: Callable[[Refusal | None], None]
        self._need: Need

    def begin(self, body_bytes: int, answer: Callable[[Refusal | None], None]) -> None:
        """Hold the worst case; `answer` is called once, at once or later: with None, or with why not."""
        self._answer = answer
        if self._ask.body.get("prompt_embeds") is not None:
            answer(_UNKNOWN_PROMPTS)
            return
        self._bound = affordable.prompt_tokens_max(self._ask, body_bytes)
        self._request()

    def _request(self) -> None:
        self._need = affordable.need_of(self._ask, self._quote.price, self._bound, self._terms.output_tokens_default)
        answer = self._terms.purses.hold(self._customer_id, self._need, self._answered)
        if answer is not None:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        """Decide, unless the prompt's bound leaves less than what was asked: then it is worth counting."""
        if isinstance(answer, Hold):
            if self._is_closed:  # the client left while the ledger was asked
                self._terms.purses.void(self._customer_id, answer)
                return
            self._hold = answer
        if self._is_closed:
            return
        if isinstance(answer, Unavailable):
            self._answer(_AWAY)
        elif self._is_counted or (isinstance(answer, Hold) and answer.tokens == self._need.tokens):
            self._decide(answer)
        else:
            self._is_counted = True
            self._terms.counter.count_prompt(self._ask, lambda counted: self._counted(counted, answer))

    def _counted(self, counted: int | None, before: Hold | Short) -> None:
        if self._is_closed:
            return
        bound = self._bound if counted is None else affordable.counted_tokens_max(self._ask, counted)
        if bound >= self._bound:
            self._decide(before)
            return
        self._bound = bound
        if self._hold is not None:
            self._terms.purses.void(self._customer_id, self._hold)
            self._hold = None
        self._request()

    def _decide(self, answer: Hold | Short) -> None:
        self._answer(insufficient(answer, self._quote.currency) if isinstance(answer, Short) else None)

    def clamped(self, kind: str) -> Ask:
        """Return the request with the limits that are held for it, for a server of this kind."""
        assert self._hold is not None, "it is held"
        return affordable.clamped(self._ask, self._hold.tokens, kind)

    def settle(self, amount: int) -> tuple[Part, ...]:
        """End the hold with what the request came to; return what pays for it, which goes with its event."""
        hold, self._hold, self._is_closed = self._hold, None, True
        assert hold is not None, "what was not held was not sent"
        return self._terms.purses.settle(self._customer_id, hold, amount)

    def parts_of(self, amount: int) -> tuple[Part, ...]:
        """Return where an amount lies now, without ending the hold. Any thread may call it."""
        hold = self._hold
        held = () if hold is None else (Part(piece.lease_id, Pico(share)) for piece, share in hold.parts)
        return spread(amount, held)[0]

    def close(self) -> None:
        """Give the hold up, if there is one: the request costs nothing."""
        self._is_closed = True
        if self._hold is not None:
            self._terms.purses.void(self._customer_id, self._hold)
            self._hold = None


def insufficient(short: Short, currency: str) -> Refusal:
    """Say what there is, what other requests hold of it, and what this one would need."""
    balance = max(0, short.standing.balance)
    held = max(0, balance - short.available)
    text = f"this request needs {_need(short.need, currency)}; the prepaid balance is {_text(balance, currency)}"
    if held:
        text += f", of which running requests hold {_text(held, currency)}"
    return Refusal("insufficient_credits", text)


def _need(need: Need, currency: str) -> str:
    if need.least == need.most:
        return _text(need.most, currency)
    return f"at least {_text(need.least, currency)} ({_text(need.most, currency)} for all tokens that it allows)"


def _text(amount: int, currency: str) -> str:
    return f"{amount_number(Pico(amount))} {currency}"
