"""What one request holds of credit and budgets: before it is sent, replaced by what it came to, or given up.

    CLOSED ─▶ ASKING ─▶ HELD ─▶ CLOSED
              waits for     settled, or given up; also while it waits
              its holds

Invariant (I7): `begin` answers once, with None when the worst case is held of every purse that applies, and a hold ends
exactly once, however the request ends: settled by its event, or given up by `close`, which every ending of an exchange
calls. The purses are asked in their order, credit first, so that `insufficient_credits` is the answer where more falls
short; each next one is asked for what the ones before can afford.

The prompt is bounded by its bytes first, which costs nothing. Only where a purse does not cover that it is counted, and
all are asked again: near the end of a balance an exact count is worth a few milliseconds.

Who is not prepaid but has credit holds nothing for it: it burns when the request ends, as far as it goes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from billing.clock import instant_text
from billing.credit.budget import Span, is_budget, key_of, span_of
from billing.credit.holds import Need, Part, spread
from billing.ledger.accounts import Principal
from billing.ledger.charges import Cap, Payment
from billing.money import Pico, amount_number
from billing.pricing.quote import Quote
from proxy.admit.purse import Hold
from proxy.admit.purses import Answer, Purses, Short, Unavailable
from proxy.relay import affordable
from proxy.relay.refusals import Refusal, retry_after
from proxy.relay.request import Ask

_AWAY = Refusal("recording_unavailable", "credit can not be checked now; try again", headers=(retry_after(1),))
_UNKNOWN_PROMPTS = Refusal(
    "invalid_request", "`prompt_embeds` can not be used with prepaid credit or a budget: their cost is not known before"
)


class PromptCounter(Protocol):
    """Counts prompts off the event loop."""

    def count_prompt(self, ask: Ask, done: Callable[[int | None], None]) -> None:
        """Count; `done` is called on the event loop, always: with None if it can not be counted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the requests of this worker that are held have in common."""

    purses: Purses
    counter: PromptCounter
    output_tokens_default: int
    zone: str = "UTC"


class Holding:
    """One request's holds, from before they exist to after they have ended."""

    __slots__ = (
        "_answer",
        "_ask",
        "_bound",
        "_holds",
        "_is_closed",
        "_is_counted",
        "_need",
        "_principal",
        "_purse_ids",
        "_quote",
        "_terms",
    )

    def __init__(self, terms: Terms, principal: Principal, quote: Quote | None, ask: Ask) -> None:
        assert quote is not None, "what has no price is not admitted"
        self._terms = terms
        self._principal = principal
        self._purse_ids = principal.purses or ()
        self._quote = quote
        self._ask = ask
        self._bound = 0
        self._holds: list[Hold] = []
        self._is_counted = False
        self._is_closed = False
        self._answer: Callable[[Refusal | None], None]
        self._need: Need

    def begin(self, body_bytes: int, answer: Callable[[Refusal | None], None]) -> None:
        """Hold the worst case; `answer` is called once, at once or later: with None, or with why not."""
        self._answer = answer
        if not self._purse_ids:
            answer(None)
            return
        if self._ask.body.get("prompt_embeds") is not None:
            answer(_UNKNOWN_PROMPTS)
            return
        self._bound = affordable.prompt_tokens_max(self._ask, body_bytes)
        self._request()

    def _request(self) -> None:
        self._need = affordable.need_of(self._ask, self._quote.price, self._bound, self._terms.output_tokens_default)
        self._hold_next()

    def _hold_next(self) -> None:
        if len(self._holds) == len(self._purse_ids):
            self._answer(None)
            return
        answer = self._terms.purses.hold(self._purse_ids[len(self._holds)], self._need, self._answered)
        if answer is not None:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        """Go on, unless the prompt's bound leaves less than what was asked: then it is worth counting."""
        purse_id = self._purse_ids[len(self._holds)]
        if self._is_closed:
            if isinstance(answer, Hold):  # the client left while the ledger was asked
                self._terms.purses.void(purse_id, answer)
            return
        if isinstance(answer, Hold):
            self._holds.append(answer)
        if isinstance(answer, Unavailable):
            self._answer(_AWAY)
        elif self._is_counted or (isinstance(answer, Hold) and answer.tokens == self._need.tokens):
            self._decide(answer, purse_id)
        else:
            self._is_counted = True
            self._terms.counter.count_prompt(self._ask, lambda counted: self._counted(counted, answer, purse_id))

    def _counted(self, counted: int | None, before: Hold | Short, purse_id: str) -> None:
        if self._is_closed:
            return
        bound = self._bound if counted is None else affordable.counted_tokens_max(self._ask, counted)
        if bound >= self._bound:
            self._decide(before, purse_id)
            return
        self._bound = bound
        self._void()
        self._request()

    def _decide(self, answer: Hold | Short, purse_id: str) -> None:
        if isinstance(answer, Short):
            self._answer(refusal_of(answer, purse_id, self._quote.currency))
            return
        if answer.tokens < self._need.tokens:
            self._need = self._need._replace(tokens=answer.tokens)
            for held_of, hold in zip(self._purse_ids, self._holds[:-1], strict=False):
                self._terms.purses.shrink(held_of, hold, self._need.most)
        self._hold_next()

    def clamped(self, kind: str) -> Ask:
        """Return the request with the limits that are held for it, for a server of this kind."""
        if not self._holds:
            return self._ask
        return affordable.clamped(self._ask, self._holds[-1].tokens, kind)

    def settle(self, amount: int) -> Payment:
        """End the holds with what the request came to; return what pays for it, which goes with its event."""
        holds, self._holds, self._is_closed = self._holds, [], True
        assert len(holds) == len(self._purse_ids), "what was not held was not sent"
        purses, principal = self._terms.purses, self._principal
        taken = [purses.settle(i, hold, amount) for i, hold in zip(self._purse_ids, holds, strict=True)]
        is_spending = principal.has_credit and not principal.is_prepaid
        return self._payment(taken, purses.spend(principal.customer_id, amount) if is_spending else None)

    def payment_of(self, amount: int) -> Payment:
        """Return where an amount lies now, without ending the holds. Any thread may call it."""
        held = [[Part(piece.lease_id, Pico(share)) for piece, share in hold.parts] for hold in self._holds]
        is_spending = self._principal.has_credit and not self._principal.is_prepaid
        return self._payment([spread(amount, parts)[0] for parts in held], () if is_spending else None)

    def _payment(self, taken: Sequence[tuple[Part, ...]], spent: tuple[Part, ...] | None) -> Payment:
        by_purse = dict(zip(self._purse_ids, taken, strict=False))
        caps = tuple(Cap(purse_id, parts) for purse_id, parts in by_purse.items() if is_budget(purse_id))
        is_prepaid = self._principal.is_prepaid
        credit = by_purse.get(self._principal.customer_id, ()) if is_prepaid else spent
        return Payment(credit, is_prepaid, caps, self._terms.zone)

    def close(self) -> None:
        """Give up what is held: the request costs nothing."""
        self._is_closed = True
        self._void()

    def _void(self) -> None:
        for purse_id, hold in zip(self._purse_ids, self._holds, strict=False):
            self._terms.purses.void(purse_id, hold)
        self._holds = []


def refusal_of(short: Short, purse_id: str, currency: str) -> Refusal:
    """Say what there is, what other requests hold of it, and what this one would need."""
    balance = max(0, short.standing.balance)
    held = max(0, balance - short.available)
    text = f"this request needs {_need(short.need, currency)}; {_there_is(short, purse_id, balance, currency)}"
    if held:
        text += f", of which running requests hold {_text(held, currency)}"
    if short.standing.until is not None:
        text += f"; it begins anew at {instant_text(short.standing.until)}"
    is_period = is_budget(purse_id) and span_of(purse_id) is not Span.UNPAID
    return Refusal("budget_exceeded" if is_period else "insufficient_credits", text)


def _there_is(short: Short, purse_id: str, balance: int, currency: str) -> str:
    limit = short.standing.limit
    if limit is None or not is_budget(purse_id):
        return f"the prepaid balance is {_text(balance, currency)}"
    if span_of(purse_id) is Span.UNPAID:
        return (
            f"of the credit limit of {_text(limit, currency)} for unpaid usage there is left {_text(balance, currency)}"
        )
    whose = "" if key_of(purse_id) is None else "this key's "
    each = f"{whose}budget of {_text(limit, currency)} a {span_of(purse_id).value}"
    return f"of {each if whose else 'the ' + each} there is left {_text(balance, currency)}"


def _need(need: Need, currency: str) -> str:
    if need.least == need.most:
        return _text(need.most, currency)
    return f"at least {_text(need.least, currency)} ({_text(need.most, currency)} for all tokens that it allows)"


def _text(amount: int, currency: str) -> str:
    return f"{amount_number(Pico(amount))} {currency}"
