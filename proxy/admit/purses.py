"""The purses of this worker, and the thread that leases for them: prepaid credit, and what budgets leave.

A purse is named by its customer's id, where it is credit, or by a budget's. A request that a purse's leases cover is
admitted at once, on the event loop, without I/O. Otherwise it waits in the purse's queue while the thread asks the
ledger, for itself and for those after it, and for some requests ahead: while leases run low the ledger is asked before
anybody has to wait. When the ledger has no more, the request gets as many tokens as are affordable, or a `Short`; it is
never admitted without its hold.

While the database is away, what the leases here cover goes on; the rest is told to come again.
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from billing import clock, ids
from billing.clock import Clock, Instant
from billing.credit.budget import customer_of
from billing.credit.holds import Need, Part
from billing.errors import DatabaseAwayError, NotFoundError
from billing.ledger import leases
from billing.ledger.database import Connection, Database, DatabaseError, is_away
from billing.ledger.leases import Standing, Taken
from billing.limits import PURSE_WAITERS_MAX
from billing.money import Pico
from proxy.admit.purse import Hold, Moment, Purse

RECALL_NS = 1_500_000_000
"""How long a request waits for other workers to give back what they do not use."""

SHORT_NS = 500_000_000
"""How long the ledger is not asked again after it had no more: a new grant takes effect within this."""

AHEAD_MIN, AHEAD_MAX = 32, 4_096
"""For how many requests a lease is wished: more, the sooner the last one was used up."""

HASTE_NS = 1_000_000_000

SCARCE_NS = 10_000_000_000
"""How long after others needed credit nothing that is not used stays here for more than a tick."""

log = logging.getLogger("weir.credit")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is done: look at the leases here; renew them, each nth look; ask whether others need them; ask the
    ledger again after others were asked.
    """

    tick_s: float = 1
    renew_ticks: int = 20
    poll_s: float = 0.5
    retry_s: float = 0.25


PACE = Pace()


class Short(NamedTuple):
    """The credit does not cover a request; `available` is what it could have held."""

    need: Need
    standing: Standing
    available: int


class Unavailable(NamedTuple):
    """The ledger can not be asked now, or too many wait for its answer."""


Answer = Hold | Short | Unavailable


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for its hold; `answer` is called on the event loop, once."""

    need: Need
    answer: Callable[[Answer], None]
    until_ns: int


@dataclass(slots=True)
class Account:
    """A purse, who waits for it, and what the ledger said last."""

    purse: Purse
    waiters: deque[Waiter]
    is_asking: bool = False
    ahead: int = AHEAD_MIN
    asked_ns: int = 0
    low: int = 0
    short: Standing | None = None
    short_until_ns: int = 0
    scarce_until_ns: int = 0
    dry_until_ns: int = 0
    told: Standing | None = None


class Purses:
    """Holds on prepaid credit. All methods are the event loop's."""

    def __init__(
        self,
        database: Database,
        loop: asyncio.AbstractEventLoop,
        currency: str,
        zone: ZoneInfo,
        now: Clock = clock.now,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        pace: Pace = PACE,
        on_refusal: Callable[[Connection, str, Instant], None] | None = None,
    ) -> None:
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{ids.uuid7()}"
        self._database = database
        self._loop = loop
        self._currency = currency
        self._zone = zone
        self._now = now
        self._monotonic_ns = monotonic_ns
        self._pace = pace
        self._on_refusal = on_refusal
        self._accounts: dict[str, Account] = {}
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="weir-credit", daemon=True)
        self._ticking: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._is_holding = False

    def start(self) -> None:
        """Begin to lease."""
        self._thread.start()
        self._ticking = self._loop.call_later(self._pace.tick_s, self._tick)

    async def close(self) -> None:
        """Give everything back, once all that was admitted is recorded, and end the thread."""
        if self._ticking is not None:
            self._ticking.cancel()
        all_open: asyncio.Future[dict[str, str] | None] = self._loop.create_future()
        self._put(lambda conn, at: leases.renew(conn, self.holder, at), lambda found, _: all_open.set_result(found))
        for lease_id, customer_id in (await all_open or {}).items():
            self._close(customer_id, [lease_id])
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def hold(self, purse_id: str, need: Need, answer: Callable[[Answer], None]) -> Answer | None:
        """Reserve a request's worst case; None where the answer comes later, on the event loop."""
        account = self._account(purse_id)
        now = self._moment()
        if not account.waiters:
            hold = account.purse.hold(need, now)
            if hold is not None:
                if account.low and account.purse.free(now) < account.low:
                    self._ask(account, need)
                return hold
            if account.short is not None and now.ns < account.short_until_ns:
                return self._clamped(account, need, account.short, now)
        if len(account.waiters) >= PURSE_WAITERS_MAX:
            return Unavailable()
        account.waiters.append(Waiter(need, answer, now.ns + RECALL_NS))
        self._ask(account, need)
        return None

    def settle(self, purse_id: str, hold: Hold, amount: int) -> tuple[Part, ...]:
        """Replace a hold by what its request came to; the parts go with its event to the recorder."""
        return self._purse(purse_id).settle(hold, amount, self._moment())

    def void(self, purse_id: str, hold: Hold) -> None:
        """Give up a hold whose request costs nothing."""
        self._purse(purse_id).void(hold, self._moment())

    def shrink(self, purse_id: str, hold: Hold, amount: int) -> None:
        """Let a hold be of less: another purse affords fewer tokens."""
        self._purse(purse_id).shrink(hold, amount)

    def spend(self, purse_id: str, amount: int) -> tuple[Part, ...] | None:
        """Pay for an ended request of which nothing was held, as far as the leases here go; lease some for the next.

        What they do not cover the ledger takes from what is free, in the event's transaction. None: a moment ago there
        was nothing, so that asking is not worth its while.
        """
        account, now = self._account(purse_id), self._moment()
        parts = account.purse.spend(amount, now)
        if now.ns < account.dry_until_ns:
            return parts or None
        if account.purse.free(now) <= account.low:
            self._ask(account, Need(Pico(amount), Pico(0), 1))
        return parts

    def _account(self, purse_id: str) -> Account:
        account = self._accounts.get(purse_id)
        if account is None:
            account = self._accounts[purse_id] = Account(Purse(purse_id), deque())
        return account

    def _purse(self, purse_id: str) -> Purse:
        """Return the purse; one that was forgotten has no lease that a hold could be on."""
        account = self._accounts.get(purse_id)
        return Purse(purse_id) if account is None else account.purse

    def _moment(self) -> Moment:
        return Moment(self._now(), self._monotonic_ns())

    # asking the ledger

    def _ask(self, account: Account, need: Need) -> None:
        """Lease for all who wait, and for some requests like this ahead; one question at a time."""
        if account.is_asking:
            return
        account.is_asking = True
        now = self._moment()
        is_hasty = now.ns - account.asked_ns < HASTE_NS
        account.ahead = min(AHEAD_MAX, account.ahead * 2) if is_hasty else AHEAD_MIN
        account.asked_ns = now.ns
        self._lease(account, need)

    def _lease(self, account: Account, need: Need) -> None:
        purse_id, count = account.purse.id, len(account.waiters)
        free = account.purse.free(self._moment())
        missing = max(0, sum(waiter.need.most for waiter in account.waiters) - free)
        wished = missing + need.most * account.ahead

        def take(conn: Connection, at: Instant) -> Taken:
            return leases.take(conn, purse_id, self.holder, self._currency, missing, wished, at, self._zone)

        def taken(found: Taken | None, since_ns: int) -> None:
            self._taken(account, need, count, found, since_ns)

        self._put(take, taken)

    def _taken(self, account: Account, need: Need, count: int, found: Taken | None, since_ns: int) -> None:
        """The ledger has answered: those who waited when it was asked are decided, the others ask again."""
        account.is_asking = False
        got = 0
        if found is not None:
            account.purse.add(found.additions, Moment(self._now(), since_ns))
            got = sum(added.amount for added in found.additions)
            self._is_holding = True
        account.low = got // 4 if got >= 4 * need.most else 0
        if not got:
            account.dry_until_ns = self._monotonic_ns() + SHORT_NS
        while account.waiters:
            now, waiter = self._moment(), account.waiters[0]
            answer: Answer | None = account.purse.hold(waiter.need, now)
            if answer is None and (count <= 0 or (got and found is not None and found.standing.available)):
                self._ask(account, waiter.need)  # it came after the question, or what it asked for was recalled
                return
            if answer is None and found is not None and found.is_recalling and now.ns < waiter.until_ns:
                account.is_asking = True
                self._loop.call_later(self._pace.retry_s, self._lease, account, need)
                return
            if answer is None:
                answer = Unavailable() if found is None else self._clamped(account, waiter.need, found.standing, now)
            count -= 1
            account.waiters.popleft()
            self._tell(waiter, answer)

    def _clamped(self, account: Account, need: Need, standing: Standing, now: Moment) -> Hold | Short:
        """Hold what is affordable, now that the ledger has no more."""
        if account.short is not standing:
            account.short, account.short_until_ns = standing, now.ns + SHORT_NS
        available = account.purse.free(now)
        hold = account.purse.hold_clamped(need, now)
        if hold is None and standing.limit is not None and standing.balance < need.least:
            self._tell_refusal(account, standing)
        return hold or Short(need, standing, available)

    def _tell_refusal(self, account: Account, standing: Standing) -> None:
        """Have it written down that a budget is used up, and not only held; once for each answer of the ledger."""
        tell, purse_id = self._on_refusal, account.purse.id
        if tell is not None and account.told is not standing:
            account.told = standing
            self._put(lambda conn, at: tell(conn, purse_id, at), _nothing)

    def _tell(self, waiter: Waiter, answer: Answer) -> None:
        try:
            waiter.answer(answer)
        except Exception:  # one request's fault must not keep the others waiting
            log.exception("credit.answer_failed")

    # keeping leases

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(self._pace.tick_s, self._tick)
        self._ticks += 1
        now = self._moment()
        for purse_id, account in tuple(self._accounts.items()):
            if account.is_asking:  # a lease that is closed here may be growing there
                continue
            closed, returned = account.purse.retire(now)
            self._close(customer_of(purse_id), closed)
            if now.ns < account.scarce_until_ns:
                returned += account.purse.give_back(account.purse.with_rest())
            self._give_back(returned)
            if not account.purse.slices and not account.waiters:
                del self._accounts[purse_id]
        self._is_holding = any(account.purse.slices for account in self._accounts.values())
        if self._is_holding and self._ticks % self._pace.renew_ticks == 0:
            self._put(lambda conn, at: leases.renew(conn, self.holder, at), self._renewed)

    def _renewed(self, found: dict[str, str] | None, since_ns: int) -> None:
        """Go on with what is open; a lease that nobody here knows was taken by a commit whose answer was lost."""
        if found is None:
            return
        unknown = dict(found)
        for account in self._accounts.values():
            account.purse.renewed(found, since_ns)
            for piece in account.purse.slices:
                unknown.pop(piece.lease_id, None)
        for lease_id, customer_id in unknown.items():
            self._close(customer_id, [lease_id])

    def _recalled(self, lease_ids: list[str]) -> None:
        for account in self._accounts.values():
            returned = account.purse.give_back(lease_ids)
            if returned:
                account.scarce_until_ns = self._monotonic_ns() + SCARCE_NS
                self._give_back(returned)

    def _give_back(self, unused: list[Part]) -> None:
        if unused:
            self._put(lambda conn, at: leases.give_back(conn, unused, at), _nothing)

    def _close(self, customer_id: str, lease_ids: list[str]) -> None:
        if lease_ids:
            self._put(lambda conn, at: leases.close(conn, customer_id, lease_ids, at), _nothing)

    # the thread's side

    def _put(self, run: Callable[[Connection, Instant], Result], done: Callable[[Result | None, int], None]) -> None:
        """Have the thread run a transaction; `done` gets its result (None: it failed) and when it began."""

        def job() -> None:
            since_ns = self._monotonic_ns()
            result = self._transact(run)
            self._loop.call_soon_threadsafe(done, result, since_ns)

        self._jobs.put(job)

    def _transact(self, run: Callable[[Connection, Instant], Result]) -> Result | None:
        try:
            with self._database.writing() as conn:
                return run(conn, leases.database_now(conn, self._now))
        except (DatabaseError, DatabaseAwayError, NotFoundError) as error:
            if isinstance(error, DatabaseError) and not is_away(error):
                log.exception("credit.refused")
            else:
                log.warning("credit.unavailable", extra={"error": type(error).__name__})
            return None

    def _run(self) -> None:
        polled_ns = 0
        while True:
            try:
                job = self._jobs.get(timeout=self._pace.poll_s)
                if job is None:
                    return
                job()
            except Empty:
                pass
            if self._is_holding and self._monotonic_ns() - polled_ns >= self._pace.poll_s * 1_000_000_000:
                polled_ns = self._monotonic_ns()
                self._poll()

    def _poll(self) -> None:
        """Look whether others need what is not used here."""
        try:
            with self._database.reading() as conn:
                found = leases.recalled(conn, self.holder)
        except (DatabaseError, DatabaseAwayError) as error:
            log.warning("credit.unavailable", extra={"error": type(error).__name__})
            return
        if found:
            self._loop.call_soon_threadsafe(self._recalled, found)


def _nothing(_result: object, _since_ns: int) -> None:
    """Nobody waits for the outcome: what was not given back is swept when the lease runs out."""
