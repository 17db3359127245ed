"""Compares what Stripe counted with what was sent, customer by customer and hour by hour, and mends what is proven.

Invariant: Stripe is asked first and the ledger is read afterwards, so that every event in Stripe's sum was claimed
before the batches were read; what was sent in between is young, hence in transit. What a comparison decides is written
only onto batches that are still as they were read. A repair is a transition in the ledger (a batch becomes sendable
again, a cancellation is written down) before anything is sent, so a crash at any point leaves it to the next push, or
to the next `--repair`, and is mended once.

One reconciliation at a time (`turn.RECONCILE`); pushing goes on meanwhile, since nobody waits for the other. It takes
a request of Stripe's for each customer and meter, at a pace below Stripe's 25 a second for an endpoint.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from billing.clock import DAY_US, HOUR_US, SECOND_US, Clock, Instant, hour_start
from billing.config import Config
from billing.errors import RefusedError, StripeError
from billing.ledger import comparisons, periods, repairs
from billing.ledger.comparisons import Checkpoint, Run, Subject
from billing.ledger.database import Connection, Database
from billing.ledger.outbox import Batch
from billing.ledger.repairs import Kind as RepairKind
from billing.stripe_sync import differences, invoices, retry, turn
from billing.stripe_sync.differences import Finding, Ghost, SendAgain, Step
from billing.stripe_sync.findings import Found, Report
from billing.stripe_sync.lanes import Lanes, Pace
from billing.stripe_sync.port import StripePort, Summary
from billing.stripe_sync.push import Pusher

logger = logging.getLogger("weir.stripe")

LANES = 8
READS_PER_S_LIVE = 20
READS_PER_S_TEST = 15
CHUNK_SUBJECTS = 100
SINCE_US = 7 * DAY_US
"""How far back a run looks by itself, and further where a customer's oldest sending is not confirmed yet."""

SINCE_US_MAX = 36 * DAY_US
ACTOR = "reconcile"


@dataclass(frozen=True, slots=True)
class _Ask:
    """One question to Stripe: a customer's hours on a meter."""

    subject: Subject
    event_name: str
    meter_id: str
    since_s: int
    until_s: int


@dataclass(frozen=True, slots=True)
class Reconciler:
    """How to reconcile: the port, the clock, the pace, and what to ask between steps.

    `reached` is told each point between two transitions, by name: "asked", "checked", "released", "cancelled".
    """

    database: Database
    port: StripePort
    event_name: str
    now: Clock
    reads_per_s: int
    is_stopping: Callable[[], bool] = lambda: False
    reached: Callable[[str], None] = lambda _point: None
    actor: str = ACTOR

    def run(
        self,
        since: Instant | None = None,
        until: Instant | None = None,
        customer_id: str | None = None,
        *,
        is_repairing: bool = False,
    ) -> Report:
        """Compare all customers, or one, over [since, until) in whole hours; return what was found.

        Without `since`: a week, and as far back as anything is unconfirmed. Raises StripeError if Stripe can not be
        asked at all; what it refuses to tell about single customers is in the report.
        """
        started_at = self.now()
        start = hour_start(started_at - SINCE_US if since is None else since)
        end = hour_start((started_at if until is None else min(until - 1, started_at)) + HOUR_US)
        if start >= end:
            raise RefusedError("there is nothing to compare: --since lies behind --until, or in the future")
        report = Report(start, end)
        oldest_s = min(start, started_at - SINCE_US_MAX) // SECOND_US
        meters = {meter.event_name: meter.id for meter in sorted(self.port.meters(), key=lambda each: each.is_active)}
        pace = Pace(self.reads_per_s)
        with Lanes(partial(self._ask, pace), LANES) as lanes:
            after: str | None = ""
            while after is not None:
                if self.is_stopping():
                    return report
                with self.database.reading() as conn:
                    chunk, after = comparisons.subjects(conn, oldest_s, after, CHUNK_SUBJECTS, customer_id)
                if chunk:
                    self._chunk(lanes, chunk, meters, report, is_reaching_back=since is None)
                report.subjects += len(chunk)
        late = self._check_invoices(report, customer_id)
        if is_repairing:
            self._repair(report)
            report.resent += invoices.carry_forward(self.database, late, self.actor, self.now())
        if customer_id is None and since is None and until is None:
            self._record(report, started_at)
        return report

    def _ask(self, pace: Pace, ask: _Ask) -> list[Summary] | str:
        pace.wait()
        try:
            return self.port.summaries(ask.meter_id, ask.subject.stripe_customer_id, ask.since_s, ask.until_s)
        except StripeError as error:
            return str(error)

    def _chunk(
        self,
        lanes: Lanes[_Ask, list[Summary] | str],
        subjects: Sequence[Subject],
        meters: Mapping[str, str],
        report: Report,
        *,
        is_reaching_back: bool,
    ) -> None:
        asks = self._asks(subjects, meters, report, is_reaching_back=is_reaching_back)
        asked_at = self.now()
        answers = lanes.run(asks)
        self.reached("asked")
        told = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if not isinstance(answer, str)]
        errors = [(ask, answer) for ask, answer in zip(asks, answers, strict=True) if isinstance(answer, str)]
        if errors and not told:
            raise StripeError(errors[0][1])
        report.unreadable += [(ask.subject, error) for ask, error in errors]
        with self.database.reading() as conn:
            found = [each for ask, answer in told for each in self._compare(conn, ask, answer, asked_at)]
        with self.database.writing() as conn:
            repairs.confirm(conn, [batch for each in found for batch in each.finding.confirmed], self.now())
            comparisons.write(conn, [_checkpoint(each, asked_at) for each in found if not each.is_known])
        self.reached("checked")
        report.add(found)

    def _asks(
        self, subjects: Sequence[Subject], meters: Mapping[str, str], report: Report, *, is_reaching_back: bool
    ) -> list[_Ask]:
        """One question for each customer and each meter to which it has sent, back to its oldest open sending."""
        since_s, until_s = report.since // SECOND_US, report.until // SECOND_US
        ids = [subject.stripe_customer_id for subject in subjects]
        oldest_s = (report.until - SINCE_US_MAX) // SECOND_US
        with self.database.reading() as conn:
            oldest = repairs.oldest_open(conn, ids, oldest_s) if is_reaching_back else {}
            sent = repairs.event_names(conn, ids, min(since_s, oldest_s))
        asks = []
        for subject in subjects:
            from_s = min(since_s, oldest.get(subject.stripe_customer_id, since_s))
            from_s -= from_s % (HOUR_US // SECOND_US)
            for name in sorted({self.event_name, *sent.get(subject.stripe_customer_id, ())}):
                if name in meters:
                    asks.append(_Ask(subject, name, meters[name], from_s, until_s))
                else:
                    report.unreadable.append((subject, f"Stripe has no meter for events named {name!r}"))
        return asks

    def _compare(self, conn: Connection, ask: _Ask, summaries: Iterable[Summary], asked_at: Instant) -> Iterable[Found]:
        ids = [ask.subject.stripe_customer_id]
        batches = [b for b in repairs.between(conn, ids, ask.since_s, ask.until_s) if b.event_name == ask.event_name]
        given_up = repairs.at_stripe(conn, ids, ask.since_s, ask.until_s)
        of_repairs = repairs.find(conn, {each.batch_id for each in given_up})
        ghosts = [Ghost(each, of_repairs[each.batch_id]) for each in given_up]
        before = comparisons.matched(conn, ids, Instant(ask.since_s * SECOND_US), Instant(ask.until_s * SECOND_US))
        by_hour: dict[int, list[Batch]] = {}
        for batch in batches:
            by_hour.setdefault(hour_start(batch.timestamp_s * SECOND_US), []).append(batch)
        units = {summary.start_s * SECOND_US: summary.units for summary in summaries if summary.units}
        known = {key[2] for key in before if key[1] == ask.event_name}
        for start in sorted({*by_hour, *units, *known}):
            of_hour = by_hour.get(start, [])
            haunting = [
                ghost
                for ghost in ghosts
                if hour_start(ghost.repair.timestamp_s * SECOND_US) == start
                and ghost.batch.event_name == ask.event_name
            ]
            finding = differences.explain(Instant(start), of_hour, haunting, units.get(start, 0), asked_at)
            matched = before.get((ask.subject.stripe_customer_id, ask.event_name, start))
            sums = (finding.ledger_units, finding.stripe_units)
            is_changed = matched is not None and matched != sums
            is_known = matched == sums and finding.kind is differences.Kind.MATCH
            windows = tuple(differences.window_text(of_hour))
            yield Found(ask.subject, ask.event_name, finding, windows, matched if is_changed else None, is_known)

    def _check_invoices(self, report: Report, customer_id: str | None) -> list[Batch]:
        """Compare the invoices of periods that ended since; return the batches that are on none for being late."""
        late: list[Batch] = []
        after = ""
        while not self.is_stopping():
            with self.database.reading() as conn:
                found = periods.unchecked(conn, self.now(), report.since, after, customer_id)
            if not found:
                break
            for boundary in found:
                try:
                    results = invoices.check(self.database, self.port, boundary, self.now())
                except StripeError as error:
                    subject = Subject(boundary.customer_id, boundary.customer_id, boundary.stripe_customer_id)
                    report.unreadable.append((subject, str(error)))
                    continue
                report.add_invoices(check for check, _ in results)
                late += [batch for _, batches in results for batch in batches]
            after = found[-1].customer_id
        return late

    def _repair(self, report: Report) -> None:
        """Write down what is to be mended, then take back what Stripe counted twice; the push sends the rest."""
        for each in report.found:
            if each.finding.steps:
                with self.database.writing() as conn:
                    for step in each.finding.steps:
                        report.resent += self._release(conn, step, each.finding)
                self.reached("released")
        with self.database.reading() as conn:
            waiting = repairs.unsettled(conn)
        batches = self._batches({each.batch_id for each in waiting})
        for each_back in waiting:
            batch = batches[each_back.batch_id]
            answer = self.port.cancel(batch.event_name, each_back.identifier, f"{each_back.identifier}-{self.now()}")
            self.reached("cancelled")
            decision = retry.decide_cancel(answer)
            if decision is None:
                logger.warning("stripe.reconcile.cancel", extra={"batch": batch.id, "answer": answer.text})
                continue
            with self.database.writing() as conn:
                repairs.settle(conn, each_back.id, decision or None, self.now())
            report.taken_back += not decision

    def _batches(self, ids: set[str]) -> dict[str, Batch]:
        with self.database.reading() as conn:
            return repairs.find(conn, ids)

    def _release(self, conn: Connection, step: Step, finding: Finding) -> int:
        """Make the transition of one step, if its batch is still as it was compared; return how many will be sent."""
        now, batch = self.now(), step.batch
        reason = finding.explanation[:300]
        if not isinstance(step, SendAgain):
            repairs.cancel(conn, batch, reason, self.actor, now)
            return 0
        if not step.is_fresh:
            return int(repairs.send_again(conn, batch, retry.next_key(batch.identifier, batch.attempts), now))
        is_done = repairs.renew(conn, batch, RepairKind.RESEND, reason, self.actor, now, timestamp_s=batch.timestamp_s)
        return int(is_done)

    def _record(self, report: Report, started_at: Instant) -> None:
        run = Run(
            started_at=started_at,
            finished_at=self.now(),
            since=report.since,
            until=report.until,
            customers=report.subjects,
            unreadable=len(report.unreadable),
            kinds=report.kinds,
        )
        with self.database.writing() as conn:
            comparisons.record_run(conn, run)
        level = logging.INFO if report.is_explained else logging.ERROR
        logger.log(level, "stripe.reconcile.done", extra={"customers": report.subjects, "kinds": dict(report.kinds)})


def reconciler(
    config: Config,
    database: Database,
    port: StripePort,
    now: Clock,
    is_stopping: Callable[[], bool] = lambda: False,
    actor: str = ACTOR,
) -> Reconciler:
    """Return the reconciler for a configuration; a test key has a sandbox's pace."""
    pace = READS_PER_S_LIVE if "_live_" in config.stripe.api_key else READS_PER_S_TEST
    return Reconciler(database, port, config.stripe.meter_event_name, now, pace, is_stopping, actor=actor)


def run(
    reconciling: Reconciler,
    pushing: Pusher,
    since: Instant | None = None,
    until: Instant | None = None,
    customer_id: str | None = None,
    *,
    is_repairing: bool = False,
) -> Report:
    """Compare, and with `is_repairing` mend, send what became sendable, and compare once more whom that concerned."""
    report = reconciling.run(since, until, customer_id, is_repairing=is_repairing)
    if not is_repairing:
        return report
    with turn.waited_for(reconciling.database, turn.PUSH):
        pushing.send()
    mended = {each.subject.customer_id for each in report.found if each.finding.steps}
    mended |= {each.customer_id for each in report.invoices if not each.is_explained}
    report.replace_customers(mended, [reconciling.run(since, until, concerned) for concerned in sorted(mended)])
    return report


def _checkpoint(found: Found, at: Instant) -> Checkpoint:
    finding = found.finding
    return Checkpoint(
        stripe_customer_id=found.subject.stripe_customer_id,
        event_name=found.event_name,
        hour_start=finding.hour_start,
        customer_id=found.subject.customer_id,
        ledger_units=finding.ledger_units,
        stripe_units=finding.stripe_units,
        kind=str(finding.kind),
        explanation=finding.explanation,
        is_explained=finding.kind in differences.EXPLAINED,
        checked_at=at,
    )
