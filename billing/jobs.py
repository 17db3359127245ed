"""Background work: webhook events, pushing usage, reconciling, dunning, partitions, and the recovery of what dead
workers left. One worker of all hosts does each; recovery looks everywhere, and its transactions say who does it.

`weir serve` runs `Jobs` beside the gateway, `weir worker` alone. Each job has a thread of its own, so that a slow
Stripe does not delay a paid invoice's resumption; each is elected anew for every round (`Database.elected`), so that a
worker that dies is replaced in the next one. Idle, a job costs one indexed query a round.

Invariant: an exception in one job is logged, makes that job wait longer, and stops nothing else. Every job is safe to
be cut off at any point: what it does is in transactions, and found unfinished by the next worker.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from billing import clock, settling
from billing.clock import DAY_US, SECOND_US, Clock
from billing.config import Config
from billing.drain import adopt
from billing.errors import RefusedError, WeirError
from billing.ledger import comparisons, inbox, leases, partitions, stripe_objects
from billing.ledger.database import Database
from billing.ledger.stripe_objects import Kind
from billing.notify import deliver, watch
from billing.recovery import Recovery
from billing.stripe_sync import autotopup, process, push, reconcile, refresh, topups, turn
from billing.stripe_sync.client import connect
from billing.stripe_sync.port import StripePort

logger = logging.getLogger("weir.jobs")

INBOX_INTERVAL_MS = 500
"""Another process may have received the event: a webhook has to take effect within a second anyway."""

DUNNING_INTERVAL_MS = 60_000
TOPUPS_INTERVAL_MS = 5_000
PARTITIONS_INTERVAL_MS = 24 * 3_600_000
CREDIT_INTERVAL_MS = 30_000
TERMS_INTERVAL_MS = 60_000
NOTIFY_INTERVAL_MS = 2_000
RECONCILE_INTERVAL_MS = 60_000
"""How often it is asked whether a day has passed since the last comparison, and what that one left unexplained."""

RECONCILE_US = DAY_US
TIDY_CUSTOMERS_MAX = 1_000
RECOVERY_INTERVAL_MS = 1_500
SPOOL_INTERVAL_MS = 5_000
SHARDS = 64
"""Rollups are split so that workers do not wait for each other's rows (`billing/ledger/events.py`)."""

TURN_RETRY_MS = 1_000
"""How soon a job tries again whose turn another job or worker had: they share some (`stripe_sync/turn.py`)."""

BACKOFF_MS_MAX = 60_000
STOP_WAIT_MS = 1_500
SIGNAL_POLL_MS = 250
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PARTITIONS_JOB = "partitions"
_CREDIT_JOB = "credit"
TERMS_JOB = "terms"
_NOTIFY_JOB = "notify"


class _TakenError(Exception):
    """Another job, here or elsewhere, has this one's turn."""


@dataclass(frozen=True, slots=True)
class Job:
    """What runs every `interval_ms`, or as soon as `wake` is set."""

    name: str
    interval_ms: int
    run: Callable[[], object]
    wake: threading.Event


class Jobs:
    """All background jobs of one process."""

    def __init__(self, config: Config, database: Database, now: Clock = clock.now) -> None:
        self._config = config
        self._database = database
        self._now = now
        self._stopping = threading.Event()
        self._inbox_wake = threading.Event()
        self._threads: list[threading.Thread] = []
        self.gauges: dict[str, int] = {}
        """What `/metrics` shows of the comparison with Stripe: the same on every worker, read from the ledger."""

        self._jobs = self._wanted()

    def start(self) -> None:
        """Start every job in a daemon thread; the first rounds begin at once."""
        assert not self._threads, "jobs are started once"
        for job in self._jobs:
            thread = threading.Thread(target=self._loop, args=(job,), name=f"weir-{job.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def run(self) -> None:
        """Start every job and wait until SIGTERM, SIGINT or another thread's `stop`; for a process's main thread.

        The handlers only write down that they ran: an event's lock may be held by the thread that they interrupt.
        """
        told: list[int] = []
        before = {number: signal.signal(number, lambda each, _: told.append(each)) for number in _ENDING_SIGNALS}
        try:
            self.start()
            while not told and not self._stopping.wait(SIGNAL_POLL_MS / 1_000):
                pass
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def wake(self) -> None:
        """Tell that a webhook event was stored, so that it is processed now and not in half a second."""
        self._inbox_wake.set()

    def stop(self) -> None:
        """End the jobs after their present step; return within a second or two, whatever they are waiting for."""
        self._stopping.set()
        for job in self._jobs:
            job.wake.set()
        self._join()

    def _join(self) -> None:
        deadline_ns = time.monotonic_ns() + STOP_WAIT_MS * 1_000_000
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0, deadline_ns - time.monotonic_ns()) / 1_000_000_000)

    def _wanted(self) -> tuple[Job, ...]:
        jobs: list[Job] = []
        if self._config.stripe.is_active:
            port = connect(self._config)
            jobs = [
                Job("inbox", INBOX_INTERVAL_MS, lambda: self._work_inbox(port), self._inbox_wake),
                Job(
                    "push",
                    self._config.billing.push_interval_s * 1_000,
                    lambda: self._push(port),
                    threading.Event(),
                ),
                Job("dunning", DUNNING_INTERVAL_MS, lambda: self._sweep(port), threading.Event()),
                Job("reconcile", RECONCILE_INTERVAL_MS, lambda: self._reconcile(port), threading.Event()),
                Job("topups", TOPUPS_INTERVAL_MS, lambda: self._top_up(port), threading.Event()),
            ]
        recovery = Recovery(self._database, os.getpid() % SHARDS, self._now)
        jobs.append(Job("recovery", RECOVERY_INTERVAL_MS, recovery.run, threading.Event()))
        jobs.append(Job("spool", SPOOL_INTERVAL_MS, self._adopt_spools, threading.Event()))
        jobs.append(Job(TERMS_JOB, TERMS_INTERVAL_MS, self._settle_terms, threading.Event()))
        jobs.append(Job(_CREDIT_JOB, CREDIT_INTERVAL_MS, self._tidy_credit, threading.Event()))
        if self._config.notify.url:
            jobs.append(Job(_NOTIFY_JOB, NOTIFY_INTERVAL_MS, self._notify, threading.Event()))
        if not self._database.is_sqlite:
            jobs.append(Job("partitions", PARTITIONS_INTERVAL_MS, self._make_partitions, threading.Event()))
        return tuple(jobs)

    def _loop(self, job: Job) -> None:
        failures = 0
        while True:
            job.wake.clear()
            if self._stopping.is_set():  # Asked after the clearing, which may have erased the wake of `stop`.
                return
            delay_ms = job.interval_ms
            try:
                job.run()
                failures = 0
            except _TakenError:
                delay_ms = min(delay_ms, TURN_RETRY_MS)
            except Exception as error:  # noqa: BLE001 (the edge of a job: no fault may end it, or reach the others)
                failures += 1
                _log_failure(job, error, failures)
                delay_ms = _backoff_ms(job, failures)
            job.wake.wait(delay_ms / 1_000)

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Be the one who does it. Raises _TakenError if another is."""
        with self._database.elected(name) as is_mine:
            if not is_mine:
                raise _TakenError
            yield

    def _work_inbox(self, port: StripePort) -> None:
        while not self._stopping.is_set() and self._has_due_events():
            with self._turn(turn.ACCOUNTS):
                if process.work_off(self._config, self._database, port, self._now) == 0:
                    return

    def _has_due_events(self) -> bool:
        with self._database.reading() as conn:
            return inbox.has_due(conn, self._now())

    def _push(self, port: StripePort) -> None:
        with self._turn(turn.PUSH):
            push.pusher(self._config, self._database, port, self._now, self._stopping.is_set).run()

    def _sweep(self, port: StripePort) -> None:
        with self._turn(turn.ACCOUNTS):
            refresh.sweep_dunning(self._config, self._database, port, self._now())

    def _reconcile(self, port: StripePort) -> None:
        """Compare with Stripe once a day, wherever that was done last; it reports and confirms, and mends nothing."""
        if self._is_reconcile_due():
            with self._turn(turn.RECONCILE):
                if self._is_reconcile_due():
                    reconcile.reconciler(self._config, self._database, port, self._now, self._stopping.is_set).run()
        with self._database.reading() as conn:
            last = comparisons.last_run(conn)
            unexplained = comparisons.unexplained(conn)
        self.gauges["weir_stripe_unexplained"] = unexplained
        if last is not None:
            self.gauges["weir_stripe_reconciled_timestamp_seconds"] = last.finished_at // SECOND_US
            self.gauges["weir_stripe_unreadable"] = last.unreadable

    def _is_reconcile_due(self) -> bool:
        with self._database.reading() as conn:
            set_up_at = stripe_objects.recorded_at(conn, Kind.METER)
            last = comparisons.last_run(conn)
        before = set_up_at if last is None else last.finished_at
        return before is not None and self._now() - before >= RECONCILE_US

    def _top_up(self, port: StripePort) -> None:
        """Charge cards of whoever runs out of credit, and look after payments of which nothing was heard."""
        with self._turn(turn.ACCOUNTS):
            topups.sweep(self._database, port, self._now)
            autotopup.run(self._database, port, self._now)

    def _tidy_credit(self) -> None:
        """Give back what dead workers held; whoever needs it before does so too, so this only keeps the books tidy."""
        with self._turn(_CREDIT_JOB):
            with self._database.reading() as conn:
                at = leases.database_now(conn, self._now)
                found = leases.dead_customers(conn, at, TIDY_CUSTOMERS_MAX)
            for customer_id in found:
                with self._database.writing() as conn:
                    leases.tidy(conn, customer_id, leases.database_now(conn, self._now))

    def _settle_terms(self) -> None:
        """Bring usage to what the plans' allowances and tiers make of it."""
        with self._turn(TERMS_JOB):
            settling.settle(self._config, self._database, self._now, is_stopped=self._stopping.is_set)

    def _adopt_spools(self) -> None:
        """Drain what workers that are gone have left on this host; no election: each spool has one holder."""
        adopt(self._database, Path(self._config.database.spool), os.getpid() % SHARDS, self._now)

    def _notify(self) -> None:
        """Tell the operator's systems which budgets and balances run low."""
        with self._turn(_NOTIFY_JOB):
            watch.look(self._config, self._database, self._now())
            deliver.deliver(self._config, self._database, self._now)

    def _make_partitions(self) -> None:
        with self._turn(_PARTITIONS_JOB), self._database.writing() as conn:
            partitions.ensure(conn, self._now())


def _backoff_ms(job: Job, failures: int) -> int:
    return min(max(job.interval_ms, 1_000 << min(failures, 10)), max(job.interval_ms, BACKOFF_MS_MAX))


def _log_failure(job: Job, error: Exception, failures: int) -> None:
    """One line for what is expected (Stripe or the database away, no setup yet); a trace for a fault of ours."""
    fields = {"job": job.name, "failures": failures, "error": str(error)[:300]}
    if isinstance(error, RefusedError):
        logger.warning("job.refused", extra=fields)
    elif isinstance(error, WeirError):
        logger.error("job.failed", extra=fields)
    else:
        logger.error("job.failed", extra=fields | {"error": type(error).__name__}, exc_info=error)
