"""Settles periods under plans' terms: adjustments bring each event to what allowance and tiers make of it.

`billing/pricing/terms.py` says why, and what holds afterwards. A period is read in one snapshot; what has to change is
then written in transactions of some hundred events under their customer's lock, each only if the event has no
correction that the snapshot did not have. What comes down is written before what goes up, so that a prepaid customer's
credit is back before it is needed. Last, the place up to which the period is settled is written: whoever was cut off
before does it again, and finds what it had written.

Invariant: run twice, or by two at once, it adds nothing. Adjustments count in the present hour (`ledger.adjustments`),
are on the receipt, lower what goes to Stripe next, and give credit back where credit had paid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from billing import ids
from billing.calendar import Period, period_of
from billing.clock import DAY_US, Clock, Instant
from billing.config import Config
from billing.ledger import adjustments, plan_counts, versions
from billing.ledger.adjustments import Order, Targets
from billing.ledger.database import Connection, Database
from billing.ledger.plan_counts import Settled, Used
from billing.money import Pico
from billing.pricing.book import PriceBook
from billing.pricing.quote import Quote
from billing.pricing.terms import TERMS, Count, amount_due, wanted

REASON = "the plan's allowance and volume tiers"
REOPEN_US = 62 * DAY_US
"""What is recorded later than this after its period's end moves nothing any more; corrections always do."""

NEVER = -1
"""No number of corrections: the period is walked through again."""

Nets = dict[str, tuple[Pico, int]]


@dataclass(frozen=True, slots=True)
class Report:
    """What one settlement of a period came to: the place, how many events were adjusted, and by how much together."""

    settled: Settled
    events: int
    amount: Pico


def settle(
    config: Config,
    database: Database,
    now: Clock,
    *,
    only: str | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[Report]:
    """Settle all periods that have something new (of one customer, or of all), and return what was adjusted."""
    settings = config.billing
    with database.reading() as conn:
        book = versions.load_book(conn, default_margin=settings.default_margin, currency=settings.currency)
    done = []
    for customer_id in sorted(book.customers_under_terms()):
        if only not in (None, customer_id) or is_stopped():
            continue
        for period in _periods(database, book, customer_id, settings.zone, now()):
            report = _settle(database, book, period, now)
            done += [] if report is None else [report]
    return done


def _periods(database: Database, book: PriceBook, customer_id: str, zone: ZoneInfo, now: Instant) -> Iterator[Settled]:
    """Give the customer's periods that may have something new, those that were never looked at too."""
    since, pers = book.customers_under_terms()[customer_id]
    first = Instant(max(since, now - REOPEN_US))
    with database.reading() as conn:
        known = {(each.per, each.period.start): each for each in plan_counts.of_customer(conn, customer_id, first)}
    for per in sorted(pers):
        period = period_of(per, first, zone)
        while period.start <= now:
            known.setdefault((per, period.start), Settled(customer_id, per, Period(*period)))
            period = period_of(per, period.end, zone)
    yield from (known[key] for key in sorted(known))


def _settle(database: Database, book: PriceBook, settled: Settled, now: Clock) -> Report | None:
    with database.reading() as conn:
        if not settled.is_stale and plan_counts.recorded(conn, settled) == settled.requests:
            return None
    with database.writing() as conn:
        plan_counts.begin(conn, settled)
    with database.reading() as conn:
        (settled,) = [
            each
            for each in plan_counts.of_customer(conn, settled.customer_id, Instant(settled.period.end - 1))
            if (each.per, each.period) == (settled.per, settled.period)
        ]
        total = plan_counts.recorded(conn, settled)
        if settled.is_stale or settled.requests + plan_counts.count_behind(conn, settled) != total:
            settled = settled.from_start
        nets, reached = _walk(conn, book, settled)
    events, amount, is_whole = _write(database, nets, book.currency, now)
    with database.writing() as conn:
        plan_counts.save(conn, replace(reached, corrections_settled=reached.corrections if is_whole else NEVER))
    return Report(reached, events, amount)


def _walk(conn: Connection, book: PriceBook, settled: Settled) -> tuple[list[tuple[int, Nets]], Settled]:
    """Walk through a period; return what shall change (with by how much, for the order of writing), and the place."""
    quotes: dict[str, Quote] = {}
    found: list[tuple[int, Nets]] = []
    for chunk in plan_counts.behind(conn, settled):
        for used in chunk:
            net, count = _net(conn, book, settled, used, quotes)
            if net != used.net:
                found.append((net - used.net, {used.id: (net, len(used.corrections))}))
            settled = replace(
                settled, count=count, requests=settled.requests + 1, until_at=used.finished_at, until_id=used.id
            )
    return found, settled


def _net(
    conn: Connection, book: PriceBook, settled: Settled, used: Used, quotes: dict[str, Quote]
) -> tuple[Pico, Count]:
    """Return what an event shall come to, and the count behind it; without terms what it is, if it never had any."""
    terms = book.terms_of(settled.customer_id, used.started_at) if settled.period.holds(used.finished_at) else None
    if terms is None or terms.per is not settled.per:
        return Pico(used.net), settled.count
    if used.price_ref not in quotes:
        quotes[used.price_ref] = versions.load_quote(conn, used.price_ref)
    quote, usage = quotes[used.price_ref], used.standing
    due, count = amount_due(quote, usage, terms, settled.count)
    return wanted(quote.price.charge(usage), due, used.corrections), count


def _write(database: Database, found: list[tuple[int, Nets]], currency: str, now: Clock) -> tuple[int, Pico, bool]:
    """Write adjustments, those that give back first; return how many, what they come to, and whether all were right."""
    run_key, events, amount, is_whole = ids.new_id(TERMS), 0, 0, True
    for is_up in (False, True):
        side = [nets for change, nets in found if (change > 0) is is_up]
        for start in range(0, len(side), adjustments.CHUNK_ROWS):
            nets = {key: net for each in side[start : start + adjustments.CHUNK_ROWS] for key, net in each.items()}
            order = Order(run_key, TERMS, REASON, TERMS, now(), currency)
            with database.writing() as conn:
                done = adjustments.adjust(conn, list(nets), order, Targets(nets))
            is_whole = is_whole and all(each.because != adjustments.MEANWHILE for each in done)
            new = [each.adjustment for each in done if each.adjustment is not None and each.is_new]
            events += len(new)
            amount += sum(each.amount_pico for each in new)
    return events, Pico(amount), is_whole
