"""The Stripe double as a sender: signatures that Stripe's verifier accepts, retries, repeats, reordering."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import stripe

from tests.contract.stripe_double_support import DAY_S, HOUR_S, Receiver, World, receiving, world


@pytest.fixture
def w() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def types_of(receiver: Receiver) -> list[str]:
    """Event types in the order of their arrival."""
    return [stripe.Webhook.construct_event_without_verification(body).type for body, _ in receiver.received]


def test_a_registered_endpoint_gets_signed_events_that_the_sdk_accepts(w: World, receiver: Receiver) -> None:
    endpoint = w.client.v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": ["customer.created", "billing.meter.created"]}
    )
    assert endpoint.secret is not None
    assert endpoint.secret.startswith("whsec_")
    assert "secret" not in w.client.v1.webhook_endpoints.retrieve(endpoint.id)
    made = w.client.v1.customers.create({"name": "Zoë"}, {"idempotency_key": "zoe"})
    w.client.v1.customers.update(made.id, {"name": "unsubscribed type"})
    assert w.double.wait_delivered()
    ((body, signature),) = receiver.received
    event = w.client.construct_event(body, signature, endpoint.secret)
    assert (event.type, event.data.object["id"]) == ("customer.created", made.id)
    assert event.request is not None
    assert event.request.idempotency_key == "zoe"
    assert event.api_version == stripe.api_version
    assert "Zoë".encode() in body


def test_a_signature_fails_for_another_secret_a_changed_body_and_an_old_time(w: World, receiver: Receiver) -> None:
    target = w.double.add_webhook(receiver.url, secret="whsec_configured")
    event = w.double.events[0]
    w.double.deliver(event)
    w.double.deliver(event, tamper=lambda body: body.replace(b"Acme", b"Evil"))
    w.double.deliver(event, signed_at=int(time.time()) - 301)
    w.double.deliver(event, secret="whsec_attacker")
    good, *bad = receiver.received
    assert w.client.construct_event(*good, target.secrets[0][0]).id == event["id"]
    for body, signature in bad:
        with pytest.raises(stripe.SignatureVerificationError):
            w.client.construct_event(body, signature, "whsec_configured")


def test_a_rolled_secret_signs_beside_the_old_one_for_24_hours(w: World, receiver: Receiver) -> None:
    target = w.double.add_webhook(receiver.url, secret="whsec_old")
    new = w.double.roll_secret(target.id)
    w.double.deliver(w.double.events[0])
    w.double.clock.advance(DAY_S)
    w.double.deliver(w.double.events[0])
    (during, during_signature), (after, after_signature) = receiver.received[-2:]
    assert during_signature.count("v1=") == 2
    assert during_signature.count("v0=") == 1
    assert w.client.construct_event(during, during_signature, "whsec_old").id
    assert w.client.construct_event(during, during_signature, new).id
    assert w.client.construct_event(after, after_signature, new).id
    with pytest.raises(stripe.SignatureVerificationError):
        w.client.construct_event(after, after_signature, "whsec_old")


def test_a_failed_delivery_is_retried_on_the_doubles_clock_with_a_fresh_signature(w: World, receiver: Receiver) -> None:
    w.double.add_webhook(receiver.url, ["customer.created"])
    receiver.answers = [500, 302]
    times = iter(range(int(time.time()), int(time.time()) + 100))
    w.double.sign_with(lambda: next(times))
    customer = w.client.v1.customers.create({"name": "B"})
    assert w.double.wait_delivered()
    assert len(receiver.received) == 1
    pending = w.client.v1.events.list({"type": "customer.created", "limit": 1}).data[0]
    assert (pending.data.object["id"], pending.pending_webhooks) == (customer.id, 1)
    w.double.clock.advance(HOUR_S)
    assert [each.status for each in w.double.deliveries] == [500, 302, 200]
    assert len({body for body, _ in receiver.received}) == 1
    assert len({signature for _, signature in receiver.received}) == 3
    assert w.client.v1.events.retrieve(pending.id).pending_webhooks == 0


def test_a_receiver_that_is_down_gets_its_events_when_it_is_back(w: World) -> None:
    with receiving() as gone:
        url = gone.url
    w.double.add_webhook(url, ["customer.created"])
    w.client.v1.customers.create({"name": "B"})
    assert w.double.wait_delivered()
    assert [each.status for each in w.double.deliveries] == [None]
    assert "ConnectionRefusedError" in (w.double.deliveries[0].error or "")
    with receiving(urlsplit(url).port or 0) as back:
        w.double.clock.advance(HOUR_S)
        assert types_of(back) == ["customer.created"]


def test_held_events_are_released_reordered_and_repeated(w: World, receiver: Receiver) -> None:
    w.double.add_webhook(receiver.url, ["customer.*"])
    w.double.hold_events()
    customer = w.client.v1.customers.create({"name": "B"})
    w.client.v1.customers.update(customer.id, {"name": "C"})
    w.double.delete_customer(customer.id)
    assert w.double.wait_delivered()
    assert receiver.received == []
    w.double.release_events(lambda ids: [*ids[::-1], ids[0]])
    assert w.double.wait_delivered()
    assert types_of(receiver) == [
        "customer.deleted",
        "customer.updated",
        "customer.created",
        "customer.created",
    ]


def test_a_delayed_event_arrives_when_its_time_has_come(w: World, receiver: Receiver) -> None:
    w.double.add_webhook(receiver.url, ["customer.created"])
    w.double.delay_events(600)
    w.client.v1.customers.create({"name": "B"})
    w.double.clock.advance(599)
    assert receiver.received == []
    w.double.clock.advance(1)
    assert types_of(receiver) == ["customer.created"]


def test_an_event_is_delivered_as_often_as_asked_with_the_same_id(w: World, receiver: Receiver) -> None:
    w.double.add_webhook(receiver.url)
    event = w.double.events[0]
    assert [each.is_success for each in w.double.deliver(event["id"], times=3)] == [True] * 3
    ids = {stripe.Webhook.construct_event_without_verification(body).id for body, _ in receiver.received}
    assert ids == {event["id"]}
    assert len(receiver.received) == 3


def test_only_loopback_receivers_are_called(w: World) -> None:
    w.double.add_webhook("http://192.0.2.1/hook", ["customer.created"])
    w.client.v1.customers.create({"name": "B"})
    assert w.double.wait_delivered()
    assert "not a loopback" in (w.double.deliveries[0].error or "")


def test_a_disabled_and_a_deleted_endpoint_get_nothing(w: World, receiver: Receiver) -> None:
    first, second = (
        w.client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]}) for _ in range(2)
    )
    w.client.v1.webhook_endpoints.update(first.id, {"disabled": True})
    w.client.v1.webhook_endpoints.delete(second.id)
    w.client.v1.customers.create({"name": "B"})
    assert w.double.wait_delivered()
    assert receiver.received == []
    assert [each.status for each in w.client.v1.webhook_endpoints.list().data] == ["disabled"]


def test_events_are_listed_newest_first_and_kept_for_30_days(w: World) -> None:
    listed = w.client.v1.events.list({"types": ["customer.created", "price.created"]}).data
    assert [each.type for each in listed] == ["price.created", "customer.created"]
    w.double.clock.advance(days=31)
    assert w.client.v1.events.list().data == []
    with pytest.raises(stripe.InvalidRequestError):
        w.client.v1.events.retrieve(listed[0].id)


def test_a_thin_destination_made_over_the_api_shows_its_secret_only_when_included(w: World, receiver: Receiver) -> None:
    made = w.client.v2.core.event_destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": receiver.url},
            "include": ["webhook_endpoint.signing_secret"],
        }
    )
    assert made.webhook_endpoint is not None
    assert made.webhook_endpoint.signing_secret
    fetched = w.client.v2.core.event_destinations.retrieve(made.id)
    assert "signing_secret" not in str(fetched)
    w.use("1", "e1")
    w.double.reject_event("e1")
    w.double.clock.advance(10)
    body, signature = receiver.received[-1]
    notice = w.client.parse_event_notification(body, signature, made.webhook_endpoint.signing_secret)
    assert notice.id == w.double.thin_events[0]["id"]
