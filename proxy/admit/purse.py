"""Leases of a credit or a budget in this worker's memory: requests are admitted under holds, without I/O.

Invariant (I7): of each lease, what is held for running requests and what was posted for ended ones never exceeds what
the ledger leased. A request's hold is its worst case; at its end the hold is replaced by the real amount. Nothing is
held on a lease that ran out (by the monotonic clock, which nobody steps) or whose grant expired.

Pure but for its own state: time is given to it, the ledger is asked elsewhere (`purses.py`).
"""

from bisect import insort
from collections.abc import Collection, Iterable
from typing import NamedTuple

from billing.credit.account import BurnOrder
from billing.credit.holds import Need, Part, affordable_tokens
from billing.ledger.leases import LEASE_AGE_US, LEASE_US, Addition
from billing.money import Pico

LEASE_NS = LEASE_US * 1_000
IDLE_NS = 10 * 1_000_000_000
"""A lease on which nothing happened for so long is given back."""

QUIET_NS = 3 * 1_000_000_000
"""A lease that is not used any more is closed after this: what it paid for is recorded by then."""


class Slice:
    """One lease, as this worker uses it; the ledger learns of `posted` with each event, of `held` never."""

    __slots__ = (
        "amount",
        "expires_at",
        "held",
        "lease_id",
        "order",
        "posted",
        "taken_at",
        "touched_ns",
        "valid_until_ns",
    )

    def __init__(self, added: Addition, at: int, ns: int) -> None:
        self.lease_id = added.lease_id
        self.order: BurnOrder = added.order
        self.expires_at = added.expires_at
        self.taken_at = at
        self.amount: int = added.amount
        self.held = 0
        self.posted = 0
        self.touched_ns = ns
        self.valid_until_ns = ns + LEASE_NS

    @property
    def free(self) -> int:
        """What may still be held."""
        return self.amount - self.held - self.posted

    def is_usable(self, now: "Moment") -> bool:
        """Whether new requests may be admitted on it."""
        return now.ns < self.valid_until_ns and (self.expires_at is None or now.at < self.expires_at)

    def is_over(self, now: "Moment") -> bool:
        """Whether it should be closed: its grant expired, or it is old enough to become a burn in the history."""
        has_expired = self.expires_at is not None and now.at >= self.expires_at
        return has_expired or not 0 <= now.at - self.taken_at < LEASE_AGE_US


class Moment(NamedTuple):
    """Now: `at` in microseconds since 1970 for what people date, `ns` on the monotonic clock for what lasts."""

    at: int
    ns: int


class Hold:
    """What one running request has reserved, and how many tokens each of its outputs may have. Ends once."""

    __slots__ = ("is_over", "parts", "tokens")

    def __init__(self, parts: tuple[tuple[Slice, int], ...], tokens: int) -> None:
        self.parts = parts
        self.tokens = tokens
        self.is_over = False

    @property
    def amount(self) -> Pico:
        """What is reserved."""
        return Pico(sum(share for _, share in self.parts))


class Purse:
    """All leases in this worker of one customer's credit, in burn order, or of one budget."""

    __slots__ = ("id", "slices")

    def __init__(self, purse_id: str) -> None:
        self.id = purse_id
        self.slices: list[Slice] = []

    def free(self, now: Moment) -> int:
        """Return what new requests may hold."""
        return sum(piece.free for piece in self.slices if piece.is_usable(now))

    def hold(self, need: Need, now: Moment) -> Hold | None:
        """Reserve the worst case of a request as it was asked; None if the leases here do not cover it."""
        return self._hold(need.most, need.tokens, now)

    def hold_clamped(self, need: Need, now: Moment) -> Hold | None:
        """Reserve as many tokens as are affordable here; None if that is not even one for each output."""
        tokens = affordable_tokens(need, self.free(now))
        return self._hold(need.amount(tokens), tokens, now) if tokens else None

    def _hold(self, amount: int, tokens: int, now: Moment) -> Hold | None:
        parts = []
        for piece in self.slices:
            if amount <= 0:
                break
            share = min(piece.free, amount)
            if share > 0 and piece.is_usable(now):
                parts.append((piece, share))
                amount -= share
        if amount > 0:
            return None
        for piece, share in parts:
            piece.held += share
            piece.touched_ns = now.ns
        return Hold(tuple(parts), tokens)

    def settle(self, hold: Hold, amount: int, now: Moment) -> tuple[Part, ...]:
        """Replace a hold by what the request came to; return what of that falls on which lease.

        What exceeds the hold (a prompt that was longer than any estimate) is laid on what is free here. What then is
        left over is missing from the parts: the ledger looks for it elsewhere (`billing/ledger/charges.py`).
        """
        assert not hold.is_over, "a hold ends once"
        assert amount >= 0, "a request earns nothing"
        hold.is_over = True
        posted: dict[str, int] = {}
        for piece, share in hold.parts:
            piece.held -= share
            amount -= _post(piece, min(share, amount), posted, now)
        for piece in self.slices if amount else ():
            if piece.is_usable(now):
                amount -= _post(piece, min(piece.free, amount), posted, now)
        return tuple(Part(lease_id, Pico(used)) for lease_id, used in posted.items())

    def shrink(self, hold: Hold, amount: int) -> None:
        """Let a hold be of less, since another purse affords fewer tokens; the last leases are freed first."""
        assert not hold.is_over, "it holds"
        kept = []
        for piece, share in hold.parts:
            part = min(share, max(0, amount))
            piece.held -= share - part
            amount -= part
            if part:
                kept.append((piece, part))
        hold.parts = tuple(kept)

    def spend(self, amount: int, now: Moment) -> tuple[Part, ...]:
        """Pay so much, as far as it goes, of what nobody holds: for requests that are admitted without credit, too."""
        return self.settle(Hold((), 0), amount, now)

    def void(self, hold: Hold, now: Moment) -> None:
        """Give up a hold whose request costs nothing."""
        self.settle(hold, 0, now)

    # what the ledger says

    def add(self, additions: Iterable[Addition], now: Moment) -> None:
        """Take in what was leased: a growth counts as such, so that what was given back meanwhile stays given back."""
        known = {piece.lease_id: piece for piece in self.slices}
        for added in additions:
            piece = known.get(added.lease_id)
            if piece is None:
                insort(self.slices, Slice(added, now.at, now.ns), key=lambda each: (each.order, each.lease_id))
            else:
                piece.amount += added.amount
                piece.valid_until_ns = now.ns + LEASE_NS
                piece.touched_ns = now.ns

    def renewed(self, lease_ids: Collection[str], since_ns: int) -> None:
        """Keep the leases that are open, as of when the ledger was asked; a closed one can not be held on any more.

        Requests that run on a closed one keep their parts: the ledger decides what pays for them.
        """
        self.slices = [piece for piece in self.slices if piece.lease_id in lease_ids]
        for piece in self.slices:
            piece.valid_until_ns = since_ns + LEASE_NS

    def give_back(self, lease_ids: Iterable[str]) -> list[Part]:
        """Let go of what is free on these leases, and return it: the ledger has to be told."""
        wanted = frozenset(lease_ids)
        return [_let_go(piece) for piece in self.slices if piece.lease_id in wanted]

    def with_rest(self) -> list[str]:
        """Return the leases of which something is free."""
        return [piece.lease_id for piece in self.slices if piece.free]

    def retire(self, now: Moment) -> tuple[list[str], list[Part]]:
        """Return leases to close, which are forgotten here, and what to give back of those that still have holds."""
        closed: list[str] = []
        returned: list[Part] = []
        for piece in tuple(self.slices):
            is_over, quiet_ns = piece.is_over(now), now.ns - piece.touched_ns
            if not piece.held and quiet_ns >= (QUIET_NS if is_over else IDLE_NS):
                self.slices.remove(piece)
                closed.append(piece.lease_id)
            elif is_over and piece.free:
                returned.append(_let_go(piece))
        return closed, returned


def _post(piece: Slice, amount: int, posted: dict[str, int], now: Moment) -> int:
    if amount > 0:
        piece.posted += amount
        piece.touched_ns = now.ns
        posted[piece.lease_id] = posted.get(piece.lease_id, 0) + amount
    return max(0, amount)


def _let_go(piece: Slice) -> Part:
    given = piece.free
    piece.amount -= given
    return Part(piece.lease_id, Pico(given))
