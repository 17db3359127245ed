"""`weir stripe` as an operator uses it, and a customer's way to Stripe: from tokens' money to the invoice's cents."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from billing import clock
from billing.cli import app, trace
from billing.cli import stripe as stripe_cli
from billing.clock import HOUR_US, SECOND_US, Instant
from billing.errors import NotFoundError, RefusedError, StripeError
from billing.ledger import accounts, events, migrate, outbox, schema, stripe_objects
from billing.ledger.accounts import Cause
from billing.ledger.outbox import State
from billing.ledger.stripe_objects import Kind
from billing.stripe_sync import customers, setup, turn
from billing.stripe_sync.client import SdkClient
from billing.stripe_sync.setup import Action
from tests.acceptance.commands import DONE, FAILED, NOT_FOUND, REFUSED, Weir, runner
from tests.emulators.stripe_double import FaultKind, StripeDouble
from tests.stripe_bench import NOON, Bench, bench, environment

METER_EVENTS = "/v1/billing/meter_events"


@pytest.fixture
def made(database_url: str) -> Iterator[Bench]:
    """A bench on each engine, its clock standing still."""
    with bench(database_url) as bench_:
        yield bench_


@pytest.fixture
def bare(database_url: str) -> Iterator[Bench]:
    """A migrated ledger and an empty Stripe account, on the machine's clock."""
    with StripeDouble() as double:
        bench_ = Bench(database_url, double)
        migrate.upgrade(bench_.database)
        yield bench_
        bench_.database.close()
        assert double.violations == []


@pytest.fixture
def weir(bare: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Weir:
    """Run a command line on the bare bench."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    for name, value in environment(bare).items():
        if name.startswith(("WEIR_", "STRIPE_")):
            monkeypatch.setenv(name, value)
    run = runner(capsys)
    if "stripe" not in app.root.commands:
        app.root.add_command(stripe_cli.stripe)
    return run


def test_setup_shows_its_plan_makes_it_once_and_then_changes_nothing(weir: Weir, bare: Bench) -> None:
    """A meter, a product, a price; the second run adopts them."""
    planned = weir("stripe", "setup", "--plan", "--json").json
    assert [(step["kind"], step["action"], step["stripe_id"]) for step in planned] == [
        ("meter", "create", None),
        ("product", "create", None),
        ("price", "create", None),
    ]
    assert bare.double.objects("billing.meter") == []
    first = weir("stripe", "setup", "--json").json
    assert [step["action"] for step in first] == ["create"] * 3
    second = weir("stripe", "setup", "--json").json
    assert [step["action"] for step in second] == ["adopt"] * 3
    assert [step["stripe_id"] for step in first] == [step["stripe_id"] for step in second]
    counts = [len(bare.double.objects(kind)) for kind in ("billing.meter", "product", "price")]
    assert counts == [1, 1, 1]
    (price,) = bare.double.objects("price")
    assert (price["unit_amount_decimal"], price["recurring"]["usage_type"]) == ("0.0001", "metered")
    with bare.database.reading() as conn:
        assert stripe_objects.known(conn)[Kind.PRICE] == price["id"]
        logged = conn.execute(sa.select(schema.audit_log.c.action)).scalars().all()
    assert logged == ["stripe.setup"] * 3
    assert "price" in weir("stripe", "setup").out


def test_setup_goes_on_where_it_was_cut_off(made: Bench) -> None:
    """At any step: what was made is found again, or repeated under its key."""
    with StripeDouble(now=NOON) as double:
        port = SdkClient(double.api_key, double.url, double.url)
        want = setup.wanted(made.config)
        for cut in (0, 1, 1):
            double.fault(FaultKind.SERVER_ERROR, "/v1/*", method="POST", skip=cut, times=None)
            with pytest.raises(StripeError):
                setup.apply(want, setup.preview(want, port), port)
            double.clear_faults()
        setup.apply(want, setup.preview(want, port), port)
        assert [len(double.objects(kind)) for kind in ("billing.meter", "product", "price")] == [1, 1, 1]


def test_setup_brings_back_what_somebody_deactivated(made: Bench) -> None:
    """The meter takes events again, and the price subscriptions."""
    (meter,), (price,) = made.double.objects("billing.meter"), made.double.objects("price")
    meter["status"], price["active"] = "inactive", False
    steps = setup.run(made.config, made.database, made.port, made.now(), "test")
    assert [step.action for step in steps] == [Action.REACTIVATE, Action.ADOPT, Action.REACTIVATE]
    assert (meter["status"], price["active"]) == ("active", True)


def test_setup_says_what_to_do_about_a_meter_it_can_not_use(weir: Weir, bare: Bench) -> None:
    """And leaves everything as it is."""
    weir("stripe", "setup")
    bare.double.objects("billing.meter")[0]["default_aggregation"]["formula"] = "count"
    answer = weir("stripe", "setup")
    assert answer.code == FAILED
    assert "formula 'count' instead of 'sum'" in answer.err
    assert "set stripe.meter_event_name to another name" in answer.err


def test_nothing_is_sent_before_the_setup(weir: Weir, bare: Bench) -> None:
    """Without a meter Stripe would refuse every event for good."""
    answer = weir("stripe", "push", "--now")
    assert (answer.code, answer.out) == (REFUSED, "")
    assert "run `weir stripe setup` first" in answer.err
    with pytest.raises(RefusedError, match="weir stripe setup"):
        bare.add("acme")


def test_a_push_tells_what_it_sent_and_the_status_agrees(weir: Weir, bare: Bench) -> None:
    """Two customers, 3.0000004 and 0.5 units."""
    weir("stripe", "setup")
    acme, ben = bare.add("acme"), bare.add("ben")
    event = bare.record(acme.id, 3_000_000_400_000 // 10**6 + 0)
    bare.record(ben.id, 500_000)
    assert weir("stripe", "status", "--json").json["customers"][0]["unassigned"] == "0.000003000000"
    sent = weir("stripe", "push", "--now", "--json").json
    assert [(row["customer"], row["units"], row["state"]) for row in sent] == [(acme.id, 3, "accepted")]
    assert sent[0]["window"] == clock.instant_text(Instant(event.window_start))
    status = weir("stripe", "status", "--json").json
    assert status["batches"] == {"accepted": 1, "carried": 1}
    rows = {row["customer"]: row for row in status["customers"]}
    assert (rows["acme"]["units_sent"], rows["acme"]["units_unsent"], rows["acme"]["carry_pico"]) == (3, 0, 0)
    assert (rows["ben"]["units_sent"], rows["ben"]["units_unsent"], rows["ben"]["carry_pico"]) == (0, 0, 500_000)
    assert rows["acme"]["stripe_customer"] == acme.stripe_customer_id
    assert status["attention"] == []
    assert "acme" in weir("stripe", "status").out
    assert weir("stripe", "status", "--csv").csv[1]["carry_pico"] == "500000"
    assert weir("stripe", "push", "--now", "--json").json == []


def test_a_push_fails_while_anything_is_not_accepted(weir: Weir, bare: Bench) -> None:
    """It names what is left; `--rejected` sends it again once it is mended."""
    weir("stripe", "setup")
    acme = bare.add("acme")
    bare.record(acme.id, 3_000_000)
    meter = bare.double.objects("billing.meter")[0]
    meter["status"] = "inactive"
    answer = weir("stripe", "push", "--now")
    assert answer.code == FAILED
    assert "not accepted by Stripe: 1 rejected" in answer.err
    (needing,) = weir("stripe", "status", "--json").json["attention"]
    assert (needing["state"], needing["units"]) == ("rejected", 3)
    assert needing["answer"].startswith("400 invalid_request_error: No active meter")
    assert "needs a person" in weir("stripe", "status").out
    meter["status"] = "active"
    assert weir("stripe", "push").code == FAILED
    assert weir("stripe", "push", "--retry-rejected").code == DONE
    assert bare.stripe_units(acme.id) == 3


def test_a_held_batch_is_released_by_a_person_who_is_asked(
    weir: Weir, bare: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer nothing happens; with --yes it goes out, and its trace names the event that billed it."""
    weir("stripe", "setup")
    acme = bare.add("acme")
    event = bare.record(acme.id, 3_000_000)
    bare.double.fault(FaultKind.RATE_LIMITED, METER_EVENTS)
    weir("stripe", "push", "--now")
    (batch,) = bare.batches(acme.id)
    with bare.database.writing() as conn:
        conn.execute(sa.update(schema.meter_batches).values(state="held", last_answer="by a test"))
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert weir("stripe", "push", "--release", batch.id).code == FAILED
    assert bare.stripe_units(acme.id) == 0
    answer = weir("stripe", "push", "--release", batch.id, "--yes")
    assert (answer.code, bare.stripe_units(acme.id)) == (DONE, 3)
    assert "released, billed at" in answer.err
    assert weir("stripe", "push", "--release", "weir-unknown", "--yes").code == NOT_FOUND
    with bare.database.reading() as conn:
        shard = events.shard_of(0, event.price_ref)
        (found,) = outbox.batches_of(conn, acme.id, event.window_start, "key_1", event.model, shard, 0)
    assert trace.billing(found) == {
        "meter_event": batch.id,
        "billed_at": clock.instant_text(Instant(batch.timestamp_s * SECOND_US)),
        "is_carried_forward": False,
    }


def test_reconcile_tells_each_hour_and_exits_with_1_until_all_is_explained(weir: Weir, bare: Bench) -> None:
    """A match; then what Stripe lost, shown, mended by --repair."""
    weir("stripe", "setup")
    acme = bare.add("acme")
    bare.record(acme.id, 3_000_000)
    weir("stripe", "push", "--now")
    told = weir("stripe", "reconcile", "--json").json
    (hour,) = told["hours"]
    assert (hour["customer"], hour["ledger_units"], hour["stripe_units"], hour["kind"]) == ("acme", 3, 3, "match")
    assert told["kinds"] == {"match": 1}
    (batch,) = bare.batches(acme.id)
    bare.double.lose_event(batch.id)
    bare.double.clock.advance(hours=26)
    with bare.database.writing() as conn:
        long_ago = batch.created_at - 24 * HOUR_US
        conn.execute(sa.update(schema.meter_batches).values(first_sent_at=long_ago, settled_at=long_ago))
    answer = weir("stripe", "reconcile")
    assert answer.code == FAILED
    assert "lost" in answer.out
    assert "1 differences are unexplained" in answer.err
    assert weir("stripe", "reconcile", "--customer", "acme", "--since", "-2d", "--repair").code == DONE
    assert bare.stripe_units(acme.id) == 3
    assert weir("stripe", "reconcile", "--csv").csv[0]["kind"] == "match"
    assert weir("stripe", "reconcile", "--customer", "nobody").code == NOT_FOUND
    assert weir("stripe", "reconcile", "--since", "-1h", "--until", "-2d").code == REFUSED


def test_a_push_waits_for_the_gateways_own(weir: Weir, bare: Bench) -> None:
    """One pusher at a time; the command gets its turn when the other's round ends, or gives up with a sentence."""
    weir("stripe", "setup")
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with bare.database.elected(turn.PUSH) as is_mine:
            assert is_mine
            is_held.set()
            is_over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    with (
        pytest.raises(RefusedError, match="another process has been busy"),
        turn.waited_for(bare.database, turn.PUSH, wait_s=0),
    ):
        raise AssertionError("it is another's turn")
    threading.Timer(0.3, is_over.set).start()
    assert weir("stripe", "push", "--now").code == DONE
    assert is_over.is_set()
    holder.join()


def test_stripe_turned_off_is_said(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the setting."""
    monkeypatch.setenv("WEIR_STRIPE__ENABLED", "false")
    assert "stripe.enabled = true" in weir("stripe", "setup").err
    monkeypatch.setenv("WEIR_STRIPE__ENABLED", "true")
    monkeypatch.setenv("STRIPE_API_KEY", "")
    assert "set STRIPE_API_KEY" in weir("stripe", "push").err


def test_a_wrong_key_is_said_without_showing_it(weir: Weir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripe's own sentence holds a part of the key, so it is not repeated."""
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_wrong_key")
    answer = weir("stripe", "setup")
    assert answer.code == FAILED
    assert "check STRIPE_API_KEY" in answer.err
    assert "sk_test" not in answer.err


def test_stripe_out_of_reach_is_one_line(weir: Weir, bare: Bench) -> None:
    """And says so."""
    bare.double.go_offline()
    answer = weir("stripe", "setup")
    assert answer.code == FAILED
    assert "Stripe could not be reached" in answer.err
    assert answer.err.count("\n") == 1


def test_an_unknown_event_can_not_be_replayed(weir: Weir) -> None:
    """Exit 3, and where to look."""
    answer = weir("stripe", "replay", "evt_unknown")
    assert answer.code == NOT_FOUND
    assert "`weir stripe events`" in answer.err
    assert weir("stripe", "events", "--json").json == []


def test_the_invoice_is_what_the_events_add_up_to(made: Bench) -> None:
    """By hand: 41 events of 0.030117 usd and one of 0.0000005 make 1,234,797 units and half a unit: 123 cents."""
    acme = made.add("acme")
    for number in range(41):
        made.record(acme.id, 30_117 * 10**6, at=made.now() + number * 60 * SECOND_US)
    made.record(acme.id, 500_000)
    made.double.clock.advance(hours=1)
    made.push()
    assert made.stripe_units(acme.id) == 41 * 30_117 == 1_234_797
    draft = made.double.end_period(str(acme.stripe_customer_id))
    (line,) = [line for line in draft["lines"]["data"] if line["amount"]]
    assert (line["quantity"], line["amount"]) == (1_234_797, 123)


def test_the_last_hour_of_a_month_is_billed_in_that_month(made: Bench) -> None:
    """Usage of 23:59:59 is sent after midnight, with a time before it; the next second's is the next month's."""
    acme = made.add("acme")
    assert acme.period_end is not None
    made.double.clock.move_to(acme.period_end // SECOND_US - 1)
    made.record(acme.id, 2_000_000)
    made.double.clock.advance(seconds=1)
    made.record(acme.id, 5_000_000)
    made.double.clock.advance(seconds=59)
    made.push(is_closing=True)
    end_s = acme.period_end // SECOND_US
    stripe_customer = acme.stripe_customer_id
    assert made.double.meter_total(stripe_customer, end=end_s) == 2
    assert made.double.meter_total(stripe_customer, start=end_s) == 5
    made.audit(acme.id)


def test_stripes_hourly_summaries_are_the_batches(made: Bench) -> None:
    """What reconciliation will compare, through the same port."""
    acme = made.add("acme")
    for hour, amount in enumerate((2_000_000, 0, 5_000_000)):
        made.record(acme.id, amount, at=made.now() - hour * HOUR_US)
    made.push(is_closing=True)
    with made.database.reading() as conn:
        meter_id = stripe_objects.known(conn)[Kind.METER]
    found = made.port.summaries(meter_id, str(acme.stripe_customer_id), NOON - 5 * 3_600, NOON + 3_600)
    assert [(each.start_s, each.units) for each in found if each.units] == [(NOON - 7_200, 5), (NOON, 2)]


def test_a_customer_is_made_once_however_often_it_is_tried(made: Bench) -> None:
    """Cut off after the customer, after the subscription, and before either was recorded."""
    acme = made.add("acme", is_linked=False)
    for path in ("/v1/customers", "/v1/subscriptions"):
        made.double.fault(FaultKind.DROP_AFTER_COMMIT, path, method="POST", times=3)
        with pytest.raises(StripeError, match="could not be reached"):
            customers.create_for(made.config, made.database, acme, made.now(), "test")
    first = customers.create_for(made.config, made.database, acme, made.now(), "test")
    assert customers.create_for(made.config, made.database, acme, made.now(), "test") == first
    assert len(made.double.objects("customer")) == len(made.double.objects("subscription")) == 1
    (at_stripe,) = made.double.objects("customer")
    assert at_stripe["metadata"] == {"weir_customer": acme.id}
    linked = made.account(acme.id)
    assert (linked.stripe_customer_id, linked.stripe_subscription_id) == (
        first.stripe_customer_id,
        first.stripe_subscription_id,
    )


def test_billing_periods_are_calendar_months_of_utc(made: Bench) -> None:
    """So that they end on a whole hour."""
    acme = made.add("acme")
    assert acme.period_end is not None
    assert clock.instant_text(acme.period_end) == "2026-04-01T00:00:00Z"
    made.double.clock.move_to(acme.period_end // SECOND_US + 60)
    subscription = made.port.find_subscription(str(acme.stripe_subscription_id))
    assert subscription is not None
    assert clock.instant_text(Instant(subscription.items[0].period_end_s * SECOND_US)) == "2026-05-01T00:00:00Z"


def test_a_customer_made_again_after_its_deletion_is_a_living_one(made: Bench) -> None:
    """Stripe repeats the first answer under a key for a day, though its customer is deleted."""
    acme = made.add("acme")
    made.double.delete_customer(str(acme.stripe_customer_id))
    with made.database.writing() as conn:
        accounts.unlink(conn, acme.id, made.now(), "test")
        accounts.suspend(conn, acme.id, Cause.STRIPE_DELETED, "gone", made.now(), "test")
    link = customers.create_for(made.config, made.database, acme, made.now(), "test")
    assert link.stripe_customer_id != acme.stripe_customer_id
    again = made.account(acme.id)
    assert again.suspensions == ()
    assert again.stripe_subscription_status == "active"


def test_what_a_deleted_customer_left_unsent_goes_to_its_new_link(made: Bench) -> None:
    """Refused for the old one, counted once for the new one."""
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.double.delete_customer(str(acme.stripe_customer_id))
    assert [each.outcome.state for each in made.push()] == [State.REJECTED]
    with made.database.writing() as conn:
        accounts.unlink(conn, acme.id, made.now(), "test")
    customers.create_for(made.config, made.database, acme, made.now(), "test")
    assert [each.outcome.state for each in made.push()] == [State.ACCEPTED]
    assert made.stripe_units(acme.id) == 7
    made.audit(acme.id)


def test_what_was_left_unsent_is_on_the_invoice_of_a_subscription_that_begins_later(made: Bench) -> None:
    """Timed where the new one begins: before that, Stripe would count it and bill it to nobody."""
    acme = made.add("acme")
    made.record(acme.id, 7_000_000)
    made.double.delete_customer(str(acme.stripe_customer_id))
    assert [each.outcome.state for each in made.push()] == [State.REJECTED]
    with made.database.writing() as conn:
        accounts.unlink(conn, acme.id, made.now(), "test")
    made.double.clock.advance(hours=3)
    customers.create_for(made.config, made.database, acme, made.now(), "test")
    assert [each.outcome.state for each in made.push()] == [State.ACCEPTED]
    draft = made.double.end_period(str(made.account(acme.id).stripe_customer_id))
    assert sum(line["quantity"] for line in draft["lines"]["data"]) == 7


def test_usage_from_before_the_link_is_in_the_first_invoice(made: Bench) -> None:
    """Of this month and the last; what is older than Stripe takes is held for review, and not suddenly invoiced."""
    acme = made.add("acme", is_linked=False)
    for hours_ago, amount in ((0, 1_000_000), (5, 2_000_000), (24 * 30, 4_000_000), (24 * 36, 8_000_000)):
        made.record(acme.id, amount, at=made.now() - hours_ago * HOUR_US)
    customers.create_for(made.config, made.database, acme, made.now(), "test")
    made.push()
    draft = made.double.end_period(str(made.account(acme.id).stripe_customer_id))
    assert sum(line["quantity"] for line in draft["lines"]["data"]) == 7
    assert [(b.units, b.state) for b in made.batches(acme.id)] == [
        (8, State.HELD),
        (4, State.ACCEPTED),
        (2, State.ACCEPTED),
        (1, State.ACCEPTED),
    ]


def test_an_existing_customer_is_adopted_with_its_subscription(made: Bench) -> None:
    """The one that bills our meter at our price, in whole hours."""
    other = made.add("other")
    made.double.clock.advance(seconds=11)
    stripe_customer = made.port.create_customer("acme gmbh", "a@acme.example", "elsewhere", "key-1").id
    subscription = made.port.create_subscription(stripe_customer, _price(made), "elsewhere", "key-2")
    acme = made.add("acme", is_linked=False)
    link = customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    assert link == customers.Link(stripe_customer, subscription.id)
    assert made.account(acme.id).period_end == other.period_end


def test_a_customer_without_our_subscription_gets_one(made: Bench) -> None:
    """Adopted twice, it has one."""
    stripe_customer = made.port.create_customer("acme gmbh", None, "elsewhere", "key-1").id
    acme = made.add("acme", is_linked=False)
    link = customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    assert customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test") == link
    assert len(made.double.objects("subscription")) == 1


def test_a_subscription_that_ends_within_an_hour_is_refused(made: Bench) -> None:
    """One hour's usage would lie in two invoices; nothing is linked."""
    made.double.clock.advance(seconds=11)
    stripe_customer = made.port.create_customer("acme gmbh", None, "elsewhere", "key-1").id
    made.port._v1.subscriptions.create({"customer": stripe_customer, "items": [{"price": _price(made)}]})
    acme = made.add("acme", is_linked=False)
    with pytest.raises(RefusedError, match="does not bill at a whole hour"):
        customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    assert made.account(acme.id).stripe_customer_id is None


def test_another_currency_and_a_trial_are_refused_with_what_to_do(made: Bench) -> None:
    """A customer of Stripe's has one currency; in a trial Stripe bills nothing of what the ledger bills."""
    stripe_customer = made.port.create_customer("acme gmbh", None, "elsewhere", "key-1").id
    found = next(each for each in made.double.objects("customer") if each["id"] == stripe_customer)
    found["currency"] = "eur"
    acme = made.add("acme", is_linked=False)
    with pytest.raises(RefusedError, match="billed in eur at Stripe"):
        customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    found["currency"] = "usd"
    made.port.create_subscription(stripe_customer, _price(made), "elsewhere", "key-2")
    made.double.objects("subscription")[0]["status"] = "trialing"
    with pytest.raises(RefusedError, match="credit that expires"):
        customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")
    assert made.account(acme.id).stripe_customer_id is None


def test_two_subscriptions_on_one_meter_are_refused(made: Bench) -> None:
    """They would bill the same usage twice."""
    acme = made.add("acme")
    made.port.create_subscription(str(acme.stripe_customer_id), _price(made), acme.id, "another")
    with pytest.raises(RefusedError, match="bill the same usage"):
        customers.create_for(made.config, made.database, acme, made.now(), "test")


def test_who_does_not_exist_or_was_deleted_is_not_adopted(made: Bench) -> None:
    """Not found, and refused."""
    acme = made.add("acme", is_linked=False)
    with pytest.raises(NotFoundError, match="cus_unknown"):
        customers.adopt(made.config, made.database, acme, "cus_unknown", made.now(), "test")
    stripe_customer = made.port.create_customer("acme gmbh", None, "elsewhere", "key-1").id
    made.double.delete_customer(stripe_customer)
    with pytest.raises(RefusedError, match="was deleted at Stripe"):
        customers.adopt(made.config, made.database, acme, stripe_customer, made.now(), "test")


def _price(made: Bench) -> str:
    with made.database.reading() as conn:
        return stripe_objects.known(conn)[Kind.PRICE]


def test_the_sdk_writes_nothing_to_the_home_folder(weir: Weir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its telemetry is off."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    assert weir("stripe", "setup").code == DONE
    assert list(home.iterdir()) == []
