"""The background jobs: they react within a second, survive every fault, elect one worker, and stop at once."""

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing.clock import DAY_US, SECOND_US
from billing.config import Config
from billing.jobs import INBOX_INTERVAL_MS, Jobs
from billing.ledger import inbox, schema
from billing.ledger.accounts import Cause
from billing.ledger.database import Database
from billing.ledger.inbox import StoredEvent
from billing.ledger.outbox import State
from billing.stripe_sync import turn, webhook
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import Bench, bench, environment, weir_command

DEADLINE_S = 60


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, which pushes every second."""
    with bench(database_url, grace_days=0) as bench_:
        bench_.config = bench_.config.model_copy(
            update={"billing": bench_.config.billing.model_copy(update={"push_interval_s": 1})}
        )
        yield bench_


@contextmanager
def started(made: Bench, config: Config | None = None, database: Database | None = None) -> Iterator[Jobs]:
    """Jobs that run, and are stopped at the end, also of a test that fails: their threads would disturb the next."""
    before = set(threading.enumerate())
    running = Jobs(config or made.config, database or made.database, made.now)
    running.start()
    try:
        yield running
    finally:
        running.stop()  # and wait for what a hanging request keeps: the database is closed behind it
        until(lambda: not (set(workers()) - before), "the threads to end")


@pytest.fixture
def jobs(made: Bench) -> Iterator[Jobs]:
    """Jobs that run, and are stopped at the end."""
    with started(made) as running:
        yield running


def workers() -> list[threading.Thread]:
    """The threads of jobs."""
    return [each for each in threading.enumerate() if each.name.startswith("weir-")]


def until(is_true: Callable[[], bool], what: str) -> None:
    """Poll a condition until the deadline."""
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() < began + DEADLINE_S, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.01)


def is_suspended(made: Bench, customer_id: str) -> bool:
    """Whether for an unpaid invoice."""
    return Cause.UNPAID in {each.cause for each in made.account(customer_id).suspensions}


def unpaid(made: Bench, customer_id: str, event_id: str = "evt_1") -> None:
    """Stripe gives up on the customer's invoices; the event is stored as the endpoint would."""
    stripe_customer = str(made.account(customer_id).stripe_customer_id)
    made.double.set_subscription_status(stripe_customer, "unpaid")
    raw = f'{{"id":"{event_id}","object":"event","type":"invoice.payment_failed","created":1,'
    raw += f'"data":{{"object":{{"id":"in_1","customer":"{stripe_customer}"}}}}}}'
    store(made, webhook.parse(raw.encode(), made.now()))


def store(made: Bench, event: StoredEvent) -> None:
    """As the endpoint does."""
    with made.database.writing() as conn:
        inbox.store(conn, event)


def test_an_event_that_this_process_received_takes_effect_at_once(made: Bench, jobs: Jobs) -> None:
    """The endpoint wakes the job."""
    acme = made.add("acme").id
    unpaid(made, acme)
    jobs.wake()
    until(lambda: is_suspended(made, acme), "the suspension")


def test_an_event_that_another_process_received_is_found_within_a_second(made: Bench, jobs: Jobs) -> None:
    """Nobody wakes the job; it looks twice a second."""
    assert INBOX_INTERVAL_MS <= 500
    acme = made.add("acme").id
    unpaid(made, acme)
    until(lambda: is_suspended(made, acme), "the suspension")


def test_usage_is_pushed_in_the_background(made: Bench, jobs: Jobs) -> None:
    """What holds a unit leaves within the interval."""
    acme = made.add("acme").id
    made.record(acme, 3_000_000)
    until(lambda: made.stripe_units(acme) == 3, "the units")
    until(lambda: {each.state for each in made.batches(acme)} == {State.ACCEPTED}, "the record of it")
    made.audit(acme)


def test_a_day_after_the_last_time_all_is_compared_with_stripe_and_the_gauges_say_so(made: Bench) -> None:
    """By itself, and not on every start; a stranger's unit is told, and nothing is mended."""
    acme = made.add("acme")
    made.record(acme.id, 3_000_000)
    made.push()
    name = made.config.stripe.meter_event_name
    made.port.send(name, str(acme.stripe_customer_id), 1, made.now() // SECOND_US, "strange", "strange")
    with started(made) as running:
        until(lambda: running.gauges == {"weir_stripe_unexplained": 0}, "the first look")
    made.double.clock.advance(days=1)
    with started(made) as running:
        until(lambda: "weir_stripe_reconciled_timestamp_seconds" in running.gauges, "the comparison")
    assert running.gauges["weir_stripe_unexplained"] == 1
    assert running.gauges["weir_stripe_reconciled_timestamp_seconds"] == made.now() // SECOND_US
    assert made.stripe_units(acme.id) == 4


class Elections(Database):
    """A ledger that notes whose turn was asked for."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[str] = []

    @contextmanager
    def elected(self, job: str) -> Iterator[bool]:
        with super().elected(job) as is_mine:
            self.asked.append(job)
            yield is_mine


def test_a_grace_period_ends_without_an_event_though_another_had_the_turn_first(made: Bench) -> None:
    """The sweep suspends; it shares its turn with others, and does not wait for its next minute."""
    acme = made.add("acme")
    made.double.decline_payments(str(acme.stripe_customer_id))
    made.double.fail_invoice(str(acme.stripe_customer_id))
    with made.database.writing() as conn:
        table = schema.customers
        since = made.now() - DAY_US
        conn.execute(sa.update(table).where(table.c.id == acme.id).values(past_due_since=since))
    database = Elections(made.database.url.render_as_string(hide_password=False))
    with ExitStack() as turn_of_another, closing(database):
        assert turn_of_another.enter_context(made.database.elected(turn.ACCOUNTS))
        with started(made, database=database):
            until(lambda: database.asked.count(turn.ACCOUNTS) >= 2, "dunning and top-ups to ask")
            assert not is_suspended(made, acme.id)
            turn_of_another.close()
            until(lambda: is_suspended(made, acme.id), "the suspension")


def test_a_slow_push_does_not_delay_an_event(made: Bench, jobs: Jobs) -> None:
    """Each job has its own thread."""
    acme, ben = made.add("acme").id, made.add("ben").id
    fault = made.double.fault(FaultKind.SLOW_BEFORE_COMMIT, "/v1/billing/meter_events", seconds=8.0)
    made.record(ben, 3_000_000)
    until(lambda: fault.hits == 1, "the push to hang")
    unpaid(made, acme)
    until(lambda: is_suspended(made, acme), "the suspension")
    assert made.stripe_units(ben) == 0, "the push hangs"


def test_stopping_does_not_wait_for_what_hangs(made: Bench) -> None:
    """A request to Stripe may hang for twenty seconds; it is safe to leave it."""
    acme = made.add("acme").id
    fault = made.double.fault(FaultKind.SLOW_BEFORE_COMMIT, "/v1/billing/meter_events", seconds=8.0)
    made.record(acme, 3_000_000)
    with started(made) as running:
        until(lambda: fault.hits == 1, "the push to hang")
        running.stop()
        assert "weir-push" in {each.name for each in workers()}


def test_jobs_that_are_idle_stop_at_once(made: Bench) -> None:
    """Also when they are told so before their first round."""
    for _ in range(5):
        with started(made) as running:
            running.stop()
            assert not [each for each in workers() if each.is_alive()]


def test_a_fault_in_one_job_is_logged_and_stops_no_other(made: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """No meter at Stripe: the push is refused, again and again; events are processed all the same."""
    acme = made.add("acme").id
    with made.database.writing() as conn:
        conn.execute(sa.delete(schema.stripe_objects))
    with caplog.at_level(logging.INFO, "weir.jobs"), started(made):
        until(lambda: any(each.message == "job.refused" for each in caplog.records), "the log line")
        unpaid(made, acme)
        until(lambda: is_suspended(made, acme), "the suspension")
    refused = next(each for each in caplog.records if each.message == "job.refused")
    assert "weir stripe setup" in refused.__dict__["error"]
    assert refused.__dict__["job"] == "push"


def test_a_job_recovers_when_the_database_is_back(made: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The rounds in between fail, and say so without a trace of what was in the rows."""
    acme = made.add("acme").id
    with made.database.writing() as conn:
        conn.execute(sa.text("ALTER TABLE stripe_events RENAME TO stripe_events_away"))
    with caplog.at_level(logging.INFO, "weir.jobs"), started(made):
        until(lambda: any(each.message == "job.failed" for each in caplog.records), "the log line")
        with made.database.writing() as conn:
            conn.execute(sa.text("ALTER TABLE stripe_events_away RENAME TO stripe_events"))
        unpaid(made, acme)
        until(lambda: is_suspended(made, acme), "the suspension")


def test_two_workers_share_the_work_and_do_nothing_twice(made: Bench) -> None:
    """Each round elects one."""
    acme = made.add("acme").id
    with started(made), started(made):
        for number in range(3):
            made.record(acme, 2_000_000)
            until(lambda number=number: made.stripe_units(acme) == 2 * (number + 1), "the units")  # type: ignore[misc]
    made.audit(acme)


def test_without_stripe_only_the_databases_own_jobs_run(made: Bench) -> None:
    """Everything else works with `stripe.enabled = false`."""
    off = Config(database=made.config.database)
    with started(made, config=off):
        names = {each.name for each in workers()}
    assert names <= {"weir-partitions", "weir-credit", "weir-recovery", "weir-spool", "weir-notify", "weir-terms"}


def test_the_months_of_the_events_are_made_ahead(made: Bench) -> None:
    """On PostgreSQL; SQLite has one table."""
    made.double.clock.advance(days=400)

    def has_month() -> bool:
        with made.database.reading() as conn:
            return made.database.is_sqlite or sa.inspect(conn).has_table("usage_events_2028_01")

    with started(made):
        until(has_month, "the partition")


def test_idle_workers_cost_next_to_nothing(made: Bench, tmp_path: Path) -> None:
    """`weir worker` with nothing to do: a few per cent of a core, measured over its own CPU time."""
    environ = environment(made) | {"WEIR_BILLING__PUSH_INTERVAL_S": "60"}
    process = subprocess.Popen(weir_command("worker"), cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL)
    try:
        began = cpu_ticks(process.pid)
        until(lambda: cpu_ticks(process.pid) > began and threads(process.pid) >= 3, "the jobs to run")
        last = -1
        while last != (last := cpu_ticks(process.pid)):
            time.sleep(0.3)  # its start is over when it rests
        idle_from, at = cpu_ticks(process.pid), time.monotonic()
        until(lambda: time.monotonic() - at > 4, "four idle seconds")
        used = (cpu_ticks(process.pid) - idle_from) / os.sysconf("SC_CLK_TCK")
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    print(f"idle: {used / 4:.3f} of a core")
    assert used / 4 < 0.05


def test_a_worker_ends_at_once_though_a_request_hangs(database_url: str, tmp_path: Path) -> None:
    """SIGTERM: the process is gone within seconds, and what it was sending is sent by the next."""
    with bench(database_url, now=None) as live:
        acme = live.add("acme").id
        fault = live.double.fault(FaultKind.SLOW_BEFORE_COMMIT, "/v1/billing/meter_events", seconds=12.0)
        live.record(acme, 3_000_000)
        process = subprocess.Popen(
            weir_command("worker"), cwd=tmp_path, env=environment(live), stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: fault.hits == 1, "the push to hang")
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
            process.wait(DEADLINE_S)
        assert {each.state for each in live.batches(acme)} == {State.SENDING}


def cpu_ticks(pid: int) -> int:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def threads(pid: int) -> int:
    """How many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
