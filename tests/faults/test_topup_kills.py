"""Workers are killed while payments become credit: each is credited once, and every refund takes back once."""

import random
import subprocess
import time
from collections.abc import Callable

import pytest

from billing.ledger import accounts, credit, inbox, leases
from billing.ledger.inbox import State
from billing.stripe_sync import topups
from billing.stripe_sync.minor_units import to_pico
from tests.stripe_bench import bench, environment, weir_command
from tests.stripe_hooks import Hooked

KILLS = 6
CUSTOMERS = 4
DEADLINE_S = 60


def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.01)


@pytest.mark.parametrize("seed", [1])
def test_kill_9_in_the_middle_of_crediting_credits_once(database_url: str, seed: int) -> None:
    """Some die while Stripe is asked, some while the ledger is written; the last one works all off."""
    chance = random.Random(seed)
    with bench(database_url, now=None) as made:
        hooked = Hooked(made)
        try:
            customers = []
            for number in range(CUSTOMERS):
                with made.database.writing() as conn:
                    added = accounts.add_customer(conn, f"c{number}", None, made.now(), "test", is_prepaid=True)
                customers.append(added)
                page = topups.open_link(made.config, made.database, made.port, added, 1_000, made.now(), "test")
                made.double.complete_checkout(page.checkout.id)
            for charge in made.double.objects("charge")[: CUSTOMERS // 2]:
                made.double.refund(charge["id"], 300)
            assert made.double.wait_delivered()
            for _ in range(KILLS):
                made.double.fault("slow", "/v1/charges", times=1, seconds=0.2)
                before = made.double.request_count
                worker = subprocess.Popen(weir_command("worker"), env=environment(made))
                until(lambda before=before: made.double.request_count > before or not _pending(hooked), "request")  # type: ignore[misc]
                time.sleep(chance.random() / 4)
                worker.kill()
                worker.wait()
            last = subprocess.Popen(weir_command("worker"), env=environment(made))
            until(lambda: not _pending(hooked), "end of the inbox")
            last.terminate()
            last.wait()
            with made.database.reading() as conn:
                for number, each in enumerate(customers):
                    refunded = 300 if number < CUSTOMERS // 2 else 0
                    kinds = [entry.kind.value for entry in reversed(credit.entries(conn, each.id, 100))]
                    assert kinds in (["topup"], ["topup", "refund"])
                    assert leases.standing(conn, each.id, made.now()).balance == to_pico(1_000 - refunded, "usd")
        finally:
            hooked.close()


def _pending(hooked: Hooked) -> bool:
    with hooked.bench.database.reading() as conn:
        return bool(inbox.listed(conn, State.PENDING, 1))
