"""A plan's terms: tokens or money that each period includes, and volume tiers; what an event comes to under them. Pure.

**Why events are booked at the list price first.** The tier of an event depends on all usage before it in the period.
At admission that is not known without a lock that all workers and hosts share, and a late event (a spool that drains,
a stream that outlived its worker) may still come before one that was priced. So a request is admitted, held and
recorded at its quote, which is the most that it can come to; then `billing/settling.py` walks the period in the order
of usage and writes the difference as adjustments, which name their events. What comes late moves those behind it:
they are adjusted again, down or up.

**Invariant.** Once settled, each event comes to what pricing its customer's events of the period one by one in the
order of (end of usage, id) gives, to the picounit: Σ amounts = Σ `amount_due`. Settled again, nothing is added.

**The order of tokens.** A period counts tokens from 0. An event takes the next ones for its prompt (cached, text,
images, audio), then for what was generated (reasoning, then the rest). A token below `included_tokens` costs nothing;
any other costs the unit price of its event's quote less the discount of the tier that it falls in, published (rounded
half-up to a whole picounit a token, as every rate) and never below its cost unless the quote is. Tiers count the
included tokens, too. Fees per request are no tokens and have no discount. Of what remains, included money pays until
it is used up.

**Which terms.** Those that were in force and on record for the customer's plan when the request began. A version that
is backdated later changes no past event. One running count serves the whole period of a customer: whoever changes
plans in the middle of one goes on counting where it was, under the new plan's allowance and tiers; usage under no
terms does not count. Days and months of `billing.timezone` are counted apart from each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from billing.calendar import Per
from billing.clock import Instant
from billing.errors import RefusedError, UsageError
from billing.limits import TIERS_MAX, TOKENS_INCLUDED_MAX
from billing.money import Pico, PicoPerToken, amount_number, publish_rate
from billing.pricing.quote import Quote
from billing.usage import Usage

PPM = 1_000_000
NOTHING = Pico(0)
TERMS = "terms"
"""What `adjustments.change` says of what terms made."""

REFUND, AMOUNT, UNCOVERED = "refund", "amount", "uncovered"
MONEY_ALONE = (REFUND, AMOUNT, UNCOVERED)
"""How `adjustments.change` begins for corrections of money alone; all others correct counts or prices."""


class Tier(NamedTuple):
    """From which token of the period on which discount holds, in millionths of the list price."""

    above: int
    discount_ppm: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan includes in each period, and its tiers by volume."""

    per: Per = Per.MONTH
    included_tokens: int = 0
    included_amount: Pico = NOTHING
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what has no meaning. Raises UsageError, RefusedError."""
        if not (self.included_tokens or self.included_amount or self.tiers):
            raise UsageError("terms include tokens or an amount, or have tiers")
        if not 0 <= self.included_tokens <= TOKENS_INCLUDED_MAX:
            raise UsageError(f"included tokens are 0 to {TOKENS_INCLUDED_MAX}")
        if not 0 <= self.included_amount < 2**62:
            raise UsageError("the included amount is not negative, and not beyond what one event can come to")
        above = [tier.above for tier in self.tiers]
        if above != sorted(set(above)) or len(above) > TIERS_MAX:
            raise UsageError(f"tiers begin above different numbers of tokens, in order, at most {TIERS_MAX} of them")
        for tier in self.tiers:
            if not 0 <= tier.above <= TOKENS_INCLUDED_MAX:
                raise UsageError(f"a tier begins above 0 to {TOKENS_INCLUDED_MAX} tokens")
            if not 0 <= tier.discount_ppm < PPM:
                raise RefusedError("a tier's discount is below 100%; to give tokens away, include them")

    def __str__(self) -> str:
        """Write them in a line, as the log keeps them."""
        tiers = " ".join(f"{tier.above}={discount_text(tier.discount_ppm)}" for tier in self.tiers)
        included = [f"{self.included_tokens} tokens"] if self.included_tokens else []
        included += [f"amount {amount_number(self.included_amount)}"] if self.included_amount else []
        parts = [f"per {self.per.value}", *included, tiers]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """A plan's terms from an instant on; None: from here on it has none."""

    id: str
    plan_id: str
    terms: Terms | None
    effective_from: Instant
    recorded_at: Instant


class Count(NamedTuple):
    """What of a period is used: tokens, and included money."""

    tokens: int = 0
    covered: int = 0


class Correction(NamedTuple):
    """What was corrected of an event: the change's name, and what it added."""

    change: str
    usage: Usage
    amount: int


def discount_text(discount_ppm: int) -> str:
    """Write a discount as `parse_discount` reads it: "12.5%"."""
    whole, fraction = divmod(discount_ppm, 10_000)
    return f"{whole}{f'.{fraction:04d}'.rstrip('0') if fraction else ''}%"


def parse_tier(text: str) -> Tier:
    """Read "10000000=12.5%": above so many tokens of the period, so much off. Raises UsageError."""
    above, sign, share = text.partition("=")
    whole, _, fraction = share.strip().removesuffix("%").partition(".")
    digits = (above.strip(), whole, fraction or "0")
    is_read = sign and share.strip().endswith("%") and all(each.isascii() and each.isdigit() for each in digits)
    if not is_read or len(fraction) > 4 or max(map(len, digits)) > 18:
        raise UsageError(f"the tier {text!r}: write TOKENS=DISCOUNT, such as 10000000=12.5%")
    return Tier(int(above), int(whole) * 10_000 + int((fraction or "0").ljust(4, "0")))


def amount_due(quote: Quote, usage: Usage, terms: Terms, count: Count) -> tuple[Pico, Count]:
    """Return what an event comes to behind what was counted before it, and the count behind it."""
    position, amount = count.tokens, int(quote.price.request)
    for tokens, price, cost in _slices(usage, quote):
        end = position + tokens
        while position < end:
            until, unit = _at(terms, position, price, cost)
            part = min(end, until or end) - position
            amount += part * unit
            position += part
    covered = min(amount, max(0, terms.included_amount - count.covered))
    return Pico(amount - covered), Count(position, count.covered + covered)


def _slices(usage: Usage, quote: Quote) -> Iterator[tuple[int, PicoPerToken, PicoPerToken]]:
    """Give an event's tokens in their order, with the price and the cost of one."""
    price, cost = quote.price, quote.cost
    media = usage.image_input_tokens + usage.audio_input_tokens
    yield usage.cached_input_tokens, price.cached_input, cost.cached_input
    yield usage.input_tokens - usage.cached_input_tokens - media, price.input, cost.input
    yield usage.image_input_tokens, price.image_input, cost.image_input
    yield usage.audio_input_tokens, price.audio_input, cost.audio_input
    yield usage.reasoning_tokens, price.reasoning, cost.reasoning
    yield usage.output_tokens - usage.reasoning_tokens, price.output, cost.output


def _at(terms: Terms, position: int, price: PicoPerToken, cost: PicoPerToken) -> tuple[int | None, PicoPerToken]:
    """Return what a token costs at a position, and at which one that may change next."""
    if position < terms.included_tokens:
        return terms.included_tokens, PicoPerToken(0)
    discount_ppm, until = 0, None
    for tier in terms.tiers:
        if tier.above > position:
            until = tier.above
            break
        discount_ppm = tier.discount_ppm
    discounted = publish_rate(price * (PPM - discount_ppm), PPM)
    return until, max(discounted, min(price, cost))


def wanted(listed: int, due: int, corrections: Iterable[Correction]) -> Pico:
    """Return what an event should come to that is worth `listed` at its quote, and `due` by its plan's terms.

    Amounts that a person added stay beside it; what was given back as a whole stays so; what no credit covered was lost
    to us already, so that a discount first makes good for that loss.
    """
    added, lost, is_refunded = 0, 0, False
    for correction in corrections:
        if correction.change == REFUND:
            added, is_refunded = 0, True
        elif correction.change.startswith(AMOUNT):
            added += correction.amount
        elif correction.change == UNCOVERED:
            lost -= correction.amount
    return Pico(max(0, added if is_refunded else min(due, listed - lost) + added))


def known(versions: Sequence[PlanTerms], at: Instant) -> list[PlanTerms]:
    """Return the versions that were on record at an instant."""
    return [each for each in versions if each.recorded_at <= at]
