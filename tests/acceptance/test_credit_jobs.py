"""The background job that gives back what dead workers held of prepaid credit."""

from collections.abc import Iterator

import pytest

from billing.config import Config
from billing.config import Database as DatabaseSection
from billing.jobs import Jobs
from tests.acceptance.harness import eventually
from tests.credit_bench import CreditBench, credit_bench


@pytest.fixture
def bench(database_url: str) -> Iterator[CreditBench]:
    """A bench on each engine."""
    with credit_bench(database_url) as made:
        yield made


def test_what_a_dead_worker_held_is_given_back_though_nobody_asks(bench: CreditBench) -> None:
    """And what it used is burnt."""
    acme, zeta = bench.customer("acme"), bench.customer("zeta")
    for customer_id in (acme, zeta):
        bench.grant(customer_id, 100)
        lease = bench.lease(customer_id, 60)
        bench.use(customer_id, 20, (lease, 20))
    bench.wait(91)
    url = bench.database.url.render_as_string(hide_password=False)
    jobs = Jobs(Config(database=DatabaseSection(url=url)), bench.database, bench.now)
    jobs.start()
    for customer_id in (acme, zeta):
        eventually(lambda: len(bench.history(customer_id)) == 2, "the lease is closed")  # noqa: B023 -- asked at once
        assert bench.history(customer_id) == [("grant", 100, 100), ("burn", -20, 80)]
        assert bench.standing(customer_id) == (80, 0, 80)
        bench.audit(customer_id)
    jobs.stop()
