"""`weir stripe reconcile --repair` killed with -9 while it asks and while it sends: then the units are counted."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing.clock import HOUR_US
from billing.ledger import schema
from tests.emulators.stripe_double import FaultKind
from tests.stripe_bench import Bench, bench, environment, weir_command

DEADLINE_S = 60
MOMENTS = {
    "while Stripe is asked": ("/v1/billing/meters/*", FaultKind.SLOW),
    "before Stripe counts what is sent again": ("/v1/billing/meter_events", FaultKind.SLOW_BEFORE_COMMIT),
    "after Stripe counted it, before it answers": ("/v1/billing/meter_events", FaultKind.SLOW),
}


@pytest.fixture
def live(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, on the machine's clock, for `weir` processes."""
    with bench(database_url, now=None) as bench_:
        yield bench_


def until(is_true: Callable[[], bool], what: str) -> None:
    """Poll a condition until the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=() if at == 1 else pytest.mark.slow) for at, moment in enumerate(MOMENTS)]
)
def test_a_killed_repair_mends_once(live: Bench, tmp_path: Path, moment: str) -> None:
    """Two of three customers' events were lost a day ago: whenever it dies, each is sent again once."""
    ids = [live.add(f"customer {number}").id for number in range(3)]
    for customer_id in ids:
        live.record(customer_id, 7_000_000)
    live.push(is_closing=True)
    for customer_id in ids[:2]:
        live.double.lose_event(live.batches(customer_id)[0].id)
    with live.database.writing() as conn:
        long_ago = live.now() - 25 * HOUR_US
        conn.execute(sa.update(schema.meter_batches).values(first_sent_at=long_ago, settled_at=long_ago))
    path, kind = MOMENTS[moment]
    fault = live.double.fault(kind, path, seconds=2.0)
    command = weir_command("stripe", "reconcile", "--repair", "--json")
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(live), stdout=subprocess.DEVNULL)
    try:
        until(lambda: fault.hits == 1, "the request to arrive")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
    until(lambda: live.double.executing_count == 0, "the killed request to end at Stripe")

    def is_mended() -> bool:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(live), capture_output=True, timeout=DEADLINE_S, check=False
        )
        return done.returncode == 0

    until(is_mended, "a repair that explains everything")
    assert [live.stripe_units(customer_id) for customer_id in ids] == [7, 7, 7]
    for customer_id in ids:
        live.audit(customer_id)
