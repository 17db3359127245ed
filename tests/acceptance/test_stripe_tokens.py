"""Tokens mode on both engines: meters of tokens at marked-up prices, through changes of prices, to the invoice."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from billing.clock import HOUR_US, Instant
from billing.ledger import periods, proof, token_meters
from billing.stripe_sync import customers, drift, invoices, previews, push, refresh, token_lanes
from tests.emulators.stripe_double import FaultKind
from tests.token_bench import MODEL, TokenBench, token_bench

IN, CACHED, OUT = (f"weir_tokens_{MODEL}_{kind}" for kind in ("input", "cached_input", "output"))
AMOUNTS = "weir_usage_micro"
MONTH_DAYS = 32


@pytest.fixture
def made(database_url: str) -> Iterator[TokenBench]:
    """A bench on each engine, in tokens mode, its clock standing still; 30 % on 0.03, 0.003 and 0.12 per million."""
    with token_bench(database_url) as bench_:
        yield bench_


def finish_month(made: TokenBench) -> None:
    """Past the period's end and the hour after which Stripe finalizes."""
    made.double.clock.advance(days=MONTH_DAYS)


def findings(made: TokenBench) -> list[object]:
    """What the ledger's own audits find."""
    with made.database.reading() as conn:
        return list(proof.run(conn))


def test_each_kind_of_token_has_a_meter_and_a_marked_up_price(made: TokenBench) -> None:
    """30 % on 0.03 per million is 39,000 pico a token, 0.0000039 cents; a plan for it again changes nothing."""
    meters = {meter["event_name"]: meter["id"] for meter in made.double.objects("billing.meter")}
    assert sorted(meters) == sorted([IN, CACHED, OUT, AMOUNTS])
    prices = {price["recurring"]["meter"]: price["unit_amount_decimal"] for price in made.double.objects("price")}
    found = {name: prices[meter_id] for name, meter_id in meters.items()}
    assert found == {IN: "0.0000039", CACHED: "0.00000039", OUT: "0.0000156", AMOUNTS: "0.0001"}
    assert {product["unit_label"] for product in made.double.objects("product")} == {"token", "millionth"}


def test_tokens_go_to_their_meters_and_come_back_on_the_invoice(made: TokenBench) -> None:
    """To the token on the invoice, to the picounit in the ledger; reconciled, traced and previewed."""
    acme = made.add("acme")
    first = made.use(acme.id, 1_000_000, 200_000, cached=400_000)
    made.double.clock.advance(minutes=10)
    made.use(acme.id, 500_001, 3)
    sent = made.push(is_closing=True)
    assert {each.outcome.state.value for each in sent} == {"accepted"}
    expected = {(IN, 39_000): 1_100_001, (CACHED, 3_900): 400_000, (OUT, 156_000): 200_003}
    assert made.sent(acme.id) == expected
    made.audit_tokens(acme.id)
    assert findings(made) == []
    seen = previews.look(made.database, made.port, acme.id)
    assert (seen.difference, seen.unexplained) == (0, 0)
    assert seen.billable == made.recorded_pico(acme.id) == first.amount_pico + 500_001 * 39_000 + 3 * 156_000
    made.double.clock.advance(hours=2)
    report = made.reconcile()
    assert (report.is_explained, report.kinds) == (True, {"match": 3})
    finish_month(made)
    assert made.lines(acme.id) == {
        f"{IN} @ 0.0000039": 1_100_001,
        f"{CACHED} @ 0.00000039": 400_000,
        f"{OUT} @ 0.0000156": 200_003,
    }
    report = made.reconcile()
    assert {(check.meter, check.invoiced_units, check.kind) for check in report.invoices} >= {
        (IN, 1_100_001, "match"),
        (CACHED, 400_000, "match"),
        (OUT, 200_003, "match"),
    }
    assert report.is_explained


def test_a_margin_that_changes_within_a_period_reprices_nothing(made: TokenBench) -> None:
    """Old usage at the old price, even when it comes late; new at the new one; and back again without a third meter."""
    acme = made.add("acme")
    made.use(acme.id, 100, 10)
    made.push(is_closing=True)
    old = made.quote(MODEL, acme.id)
    made.margin("50%")
    made.use(acme.id, 200, 20)
    made.use(acme.id, 7, 0, quote=old)
    made.push(is_closing=True)
    made.margin("30%")
    made.use(acme.id, 1_000, 0)
    made.push(is_closing=True)
    assert made.sent(acme.id) == {
        (IN, 39_000): 1_107,
        (OUT, 156_000): 10,
        (f"{IN}_2", 45_000): 200,
        (f"{OUT}_2", 180_000): 20,
    }
    made.audit_tokens(acme.id)
    finish_month(made)
    assert made.lines(acme.id) == {
        f"{IN} @ 0.0000039": 1_107,
        f"{OUT} @ 0.0000156": 10,
        f"{IN}_2 @ 0.0000045": 200,
        f"{OUT}_2 @ 0.000018": 20,
    }
    assert made.reconcile().is_explained
    assert findings(made) == []


def test_a_customer_with_a_margin_of_its_own_has_prices_of_its_own_on_the_same_meters(made: TokenBench) -> None:
    """Two customers, one meter, two prices."""
    acme, ben = made.add("acme"), made.add("ben")
    made.margin("100%", ben.id)
    for customer in (acme, ben):
        made.use(customer.id, 1_000, 0)
    made.push(is_closing=True)
    assert made.sent(acme.id) == {(IN, 39_000): 1_000}
    assert made.sent(ben.id) == {(IN, 60_000): 1_000}
    finish_month(made)
    assert made.lines(ben.id) == {f"{IN} @ 0.000006": 1_000}


def test_what_is_no_whole_number_of_tokens_is_billed_as_an_amount(made: TokenBench) -> None:
    """A correction takes from the usage that follows it, and the customer is never asked for more than the ledger."""
    acme = made.add("acme")
    made.use(acme.id, 1_000, 0)
    made.push(is_closing=True)
    made.record(acme.id, -78_500_000)  # a correction: two units and a half less than these tokens cost
    made.double.clock.advance(hours=1)
    made.use(acme.id, 2_000, 1_000)
    made.double.clock.advance(hours=1)
    made.use(acme.id, 5, 0)
    made.push(is_closing=True)
    rest = 2_000 * 39_000 + 1_000 * 156_000 - 78_500_000
    assert made.sent(acme.id) == {(IN, 39_000): 1_005, (AMOUNTS, 1_000_000): rest // 1_000_000}
    made.audit_tokens(acme.id)
    finish_month(made)
    assert made.lines(acme.id)[f"{AMOUNTS} @ 0.0001"] == rest // 1_000_000


def test_a_model_with_a_fee_a_strange_name_and_tiny_prices_is_billed_to_the_request(made: TokenBench) -> None:
    """Names become safe, long ones too; a price below 10⁻⁶ cents is sent as plain digits; requests are counted."""
    acme = made.add("acme")
    names = ("Qwen/Qwen3.5 9B é", "x" * 180)
    for name in names:
        made.cost(name, 10_000, 10_000, request=1_000_000)
        made.use(acme.id, 3, 4, model=name)
    made.push(is_closing=True)
    sent = made.sent(acme.id)
    assert sorted(sent.values()) == [1, 1, 3, 3, 4, 4]
    assert all(len(name) <= 100 and name.isascii() and " " not in name for name, _ in sent)
    amounts = {price["unit_amount_decimal"] for price in made.double.objects("price")}
    assert "0.0000013" in amounts
    made.audit_tokens(acme.id)


def test_usage_beyond_the_items_of_a_subscription_is_billed_as_an_amount_and_idle_items_make_room(
    made: TokenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same money either way; an item that billed nothing for a whole period is given back."""
    assert token_lanes.ITEMS_MAX == 20, "Stripe's limit, too high for a quick test"
    monkeypatch.setattr(token_lanes, "ITEMS_MAX", 4)
    acme = made.add("acme")
    for model in ("m1", "m2"):
        made.cost(model, 10_000, 20_000)
        made.use(acme.id, 10, 10, model=model)
    made.push(is_closing=True)
    m1, amount = 10 * (13_000 + 26_000), 10 * (13_000 + 26_000)
    of_m1 = {("weir_tokens_m1_input", 13_000): 10, ("weir_tokens_m1_output", 26_000): 10}
    assert made.sent(acme.id) == of_m1, "m2 has room for its input alone, so it goes as an amount, below a unit yet"
    assert made.assigned_pico(acme.id) == m1 + amount
    (subscription,) = made.double.objects("subscription")
    assert len(subscription["items"]["data"]) == 4
    for _ in range(2):
        made.reconcile()
        finish_month(made)
        refresh.refresh(made.config, made.database, made.port, acme.id, made.now(), "test")
        for boundary in _boundaries(made):
            invoices.check(made.database, made.port, boundary, made.now())
    made.use(acme.id, 10, 10, model="m2")
    made.push(is_closing=True)
    of_m2 = {("weir_tokens_m2_input", 13_000): 10, ("weir_tokens_m2_output", 26_000): 10}
    assert made.sent(acme.id) == of_m1 | of_m2
    made.use(acme.id, 10, 10, model="m1")
    made.push(is_closing=True)
    assert sum(batch.carry_pico for batch in made.batches(acme.id)[-1:]) == m1 + amount, "no room again: an amount"
    made.audit_tokens(acme.id)
    assert findings(made) == []


def _boundaries(made: TokenBench) -> list[periods.Boundary]:
    with made.database.reading() as conn:
        return periods.unchecked(conn, made.now(), Instant(0), "", None)


@pytest.mark.slow
def test_usage_waits_for_its_meter_while_stripe_is_away_and_loses_nothing(made: TokenBench) -> None:
    """At each call to Stripe, the round is cut off; the next goes on, and nothing is made or counted twice."""
    acme = made.add("acme")
    made.margin("70%")
    made.use(acme.id, 1_000, 500, cached=10)
    for cut in range(14):
        made.double.fault(FaultKind.DROP_AFTER_COMMIT, "/v1/*", method="POST", skip=cut % 3, times=None)
        made.push(is_closing=True)
        made.double.clear_faults()
        made.double.clock.advance(minutes=1)
    made.push(is_closing=True)
    assert made.sent(acme.id) == {(IN, 51_000): 990, (CACHED, 5_100): 10, (OUT, 204_000): 500}
    made.audit_tokens(acme.id)
    (subscription,) = made.double.objects("subscription")
    prices = [item["price"]["id"] for item in subscription["items"]["data"]]
    assert len(prices) == len(set(prices)) == 4


def test_usage_of_before_the_link_is_billed_in_the_first_period(made: TokenBench) -> None:
    """No batch is timed before the item that bills it was made."""
    acme = made.add("acme", is_linked=False)
    made.use(acme.id, 1_000, 0, at=Instant(made.now() - 5 * HOUR_US))
    made.push(is_closing=True)
    assert made.sent(acme.id) == {}
    customers.create_for(made.config, made.database, made.account(acme.id), made.now(), "test")
    made.push(is_closing=True)
    finish_month(made)
    assert made.lines(acme.id) == {f"{IN} @ 0.0000039": 1_000}


def test_drift_is_told_of_every_meter_and_price(made: TokenBench) -> None:
    """Whatever somebody switches off or replaces in the Dashboard is named, with what mends it."""
    assert drift.look(made.config, made.database, made.port) == []
    meters = {meter["event_name"]: meter for meter in made.double.objects("billing.meter")}
    meters[OUT]["status"] = "inactive"
    price = next(each for each in made.double.objects("price") if each["recurring"]["meter"] == meters[IN]["id"])
    price["active"] = False
    found = drift.look(made.config, made.database, made.port)
    assert {(each.kind, each.stripe_id) for each in found} == {("meter", meters[OUT]["id"]), ("price", price["id"])}
    assert all("weir stripe setup" in each.remedy for each in found)


def test_a_round_opens_items_for_some_customers_and_leaves_the_others_to_the_next(
    made: TokenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a change of all prices does not keep everybody waiting for Stripe."""
    monkeypatch.setattr(token_lanes, "OPENED_CUSTOMERS_MAX", 2)
    everybody = [made.add(f"c{number}") for number in range(5)]
    for customer in everybody:
        made.use(customer.id, 100, 0)
    counts = []
    for _ in range(3):
        made.push(is_closing=True)
        counts.append(sum(bool(made.sent(customer.id)) for customer in everybody))
    assert counts == [2, 4, 5]


def test_a_switch_of_modes_loses_nothing(made: TokenBench) -> None:
    """What is assigned stays what it is; the rest of the hour goes the new way."""
    acme = made.add("acme")
    made.use(acme.id, 1_000, 0)
    made.push(is_closing=True)
    amounts = replace(made.token_pusher(), tokens=None)
    made.use(acme.id, 1_000, 0)
    amounts.run(is_closing=True)
    made.use(acme.id, 1_000, 0)
    made.push(is_closing=True)
    assert made.sent(acme.id) == {(IN, 39_000): 2_000, (AMOUNTS, 1_000_000): 39}
    made.audit_tokens(acme.id)
    assert push.pusher(made.config, made.database, made.port, made.now).tokens is not None
    with made.database.reading() as conn:
        assert [lane.number for lane in token_meters.lanes(conn, [acme.id]) if lane.model] == [1]


def test_tokens_that_were_left_unsent_are_billed_by_the_next_link(made: TokenBench) -> None:
    """The meter's item is made before they are sent, and they are timed no earlier."""
    acme = made.add("acme")
    made.use(acme.id, 500, 0)
    made.push(is_closing=True)
    made.use(acme.id, 1_000, 0)
    made.double.delete_customer(str(acme.stripe_customer_id))
    made.push(is_closing=True)
    refresh.refresh(made.config, made.database, made.port, acme.id, made.now(), "test")
    made.double.clock.advance(hours=3)
    customers.create_for(made.config, made.database, made.account(acme.id), made.now(), "test")
    made.push(is_closing=True)
    assert made.sent(acme.id) == {(IN, 39_000): 1_500}
    finish_month(made)
    assert made.lines(acme.id) == {f"{IN} @ 0.0000039": 1_000}
    assert findings(made) == []
