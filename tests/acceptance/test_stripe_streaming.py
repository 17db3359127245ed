"""What Stripe decides about a customer while one of its streams is running: the stream ends whole, and is billed."""

from pathlib import Path

import pytest

from billing import clock
from billing.ledger import accounts, standings
from billing.stripe_sync import customers, refresh, setup
from tests.acceptance.harness import CUSTOMER, eventually, price
from tests.acceptance.raw import Raw, ask, body, request
from tests.acceptance.serving import fake_upstream, gateway_before, next_record, script_chat
from tests.emulators.stripe_double import StripeDouble
from tests.emulators.upstream import Await, Gate, chat_chunk, done, event, last_chunk, sse_head, usage_chunk
from tests.stripe_bench import Bench


@pytest.mark.slow
def test_a_customer_deleted_at_stripe_mid_stream_loses_no_usage(database_url: str, tmp_path: Path) -> None:
    """New requests are refused; what was streaming is delivered and recorded, waits, and is billed by the next link."""
    with (
        fake_upstream() as fake,
        gateway_before(fake, tmp_path / "gateway", database_url=database_url) as gateway,
        StripeDouble(now=None) as double,
    ):
        made = Bench(database_url, double)
        setup.run(made.config, made.database, made.port, made.now(), "test")
        with made.database.reading() as conn:
            acme = accounts.find_customer(conn, CUSTOMER)
        linked = customers.create_for(made.config, made.database, acme, clock.now(), "test")
        gate = Gate()
        rest = (event(chat_chunk(" two")), event(usage_chunk(50, 40)), done(), last_chunk())
        before = script_chat(fake, sse_head(), event(chat_chunk("one")), Await(gate), *rest)
        client = Raw(gateway)
        client.send(request(gateway.key, body(stream=True)))
        head = client.head()
        client.until(b"one")
        next_record(fake, before)
        double.delete_customer(linked.stripe_customer_id)
        refresh.refresh(made.config, made.database, made.port, acme.id, clock.now())
        eventually(lambda: ask(gateway, request(gateway.key)).status == 403, "new requests are refused")
        gate.open()
        assert b"[DONE]" in client.until(b"[DONE]")
        client.close()
        row = gateway.event(head.id)
        assert (row["outcome"], row["output_tokens"]) == ("completed", 40)
        amount = made.recorded_pico(acme.id)
        assert amount >= row["amount_pico"] == price(50, 40)
        assert made.push(is_closing=True) == []
        assert made.double.meter_total(linked.stripe_customer_id) == 0
        again = customers.create_for(made.config, made.database, made.account(acme.id), clock.now(), "test")
        assert again.stripe_customer_id != linked.stripe_customer_id
        assert eventually(lambda: ask(gateway, request(gateway.key)).status == 200, "it is served again")
        made.push(is_closing=True)
        with made.database.reading() as conn:
            (standing,) = standings.standings(conn)
        total = made.recorded_pico(acme.id)
        assert standing.units_sent * 10**6 + standing.carry + standing.unassigned == total > amount
        assert made.stripe_units(acme.id) == standing.units_sent > 0
        assert standing.unassigned == 0
        made.database.close()
        assert double.violations == []
