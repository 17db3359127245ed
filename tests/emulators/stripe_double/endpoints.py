"""Where events are sent: v1 webhook endpoints (snapshots) and v2 event destinations (snapshots or thin
events).

Documented: the secret is shown at creation only; a rolled secret stays valid for up to 24 hours, during which
both sign; a thin and a snapshot destination have different secrets. The double adds a choice of the secret,
because the process under test has its own in its configuration before anything runs.
"""

from __future__ import annotations

import secrets

from .account import API_VERSION, Account, Json
from .clock import DAY_S, rfc3339
from .listing import merge_metadata, newest_first, page, update
from .routing import Call, Route, route
from .targets import Target

WEBHOOK = "webhook_endpoint"
DESTINATION = "v2.core.event_destination"


def new_secret() -> str:
    """A signing secret in Stripe's form."""
    return f"whsec_{secrets.token_urlsafe(24)}"


def create(account: Account, call: Call) -> Json:
    """POST /v1/webhook_endpoints"""
    asked = call.parameters
    return add_webhook(account, asked["url"], asked["enabled_events"], new_secret(), asked)


def add_webhook(account: Account, url: str, patterns: list[str], secret: str, asked: Json) -> Json:
    """Registers an endpoint; the answer shows the secret, the stored object does not."""
    endpoint: Json = {
        "id": account.new_id("we"),
        "object": WEBHOOK,
        "api_version": asked.get("api_version"),
        "application": None,
        "created": account.now(),
        "description": asked.get("description"),
        "enabled_events": list(patterns),
        "livemode": False,
        "metadata": merge_metadata({}, asked.get("metadata")),
        "status": "enabled",
        "url": url,
    }
    account.add(endpoint)
    account.targets[endpoint["id"]] = Target(endpoint["id"], url, list(patterns), False, [(secret, None)])
    return {**endpoint, "secret": secret}


def retrieve(account: Account, call: Call) -> Json:
    """GET /v1/webhook_endpoints/{id}"""
    return account.get(WEBHOOK, call.id)


def change(account: Account, call: Call) -> Json:
    """POST /v1/webhook_endpoints/{id}"""
    endpoint = account.get(WEBHOOK, call.id)
    update(endpoint, call, "description enabled_events metadata url")
    if "disabled" in call.parameters:
        endpoint["status"] = "disabled" if call.parameters["disabled"] else "enabled"
    target = account.targets[call.id]
    target.url, target.patterns = endpoint["url"], endpoint["enabled_events"]
    target.is_enabled = endpoint["status"] == "enabled"
    return endpoint


def delete(account: Account, call: Call) -> Json:
    """DELETE /v1/webhook_endpoints/{id}"""
    account.get(WEBHOOK, call.id)
    del account.targets[call.id]
    return account.remove(WEBHOOK, call.id)


def listed(account: Account, call: Call) -> Json:
    """GET /v1/webhook_endpoints"""
    return page(call, newest_first(account, WEBHOOK, call))


def roll_secret(account: Account, target_id: str, *, overlap_s: int = DAY_S) -> str:
    """A new secret; the old ones sign on for the overlap."""
    target = account.targets[target_id]
    until = account.now() + overlap_s
    target.secrets = [(secret, until if end is None else end) for secret, end in target.secrets]
    target.secrets.append((new_secret(), None))
    return target.secrets[-1][0]


def create_destination(account: Account, call: Call) -> Json:
    """POST /v2/core/event_destinations"""
    asked = call.parameters
    document = add_destination(
        account,
        asked["webhook_endpoint"]["url"],
        asked["enabled_events"],
        new_secret(),
        asked["name"],
        is_thin=asked["event_payload"] == "thin",
    )
    included = asked.get("include", [])
    shown = {
        name: value for name, value in document["webhook_endpoint"].items() if f"webhook_endpoint.{name}" in included
    }
    return {**document, "webhook_endpoint": shown}


def add_destination(account: Account, url: str, patterns: list[str], secret: str, name: str, *, is_thin: bool) -> Json:
    """Registers a v2 destination; gives it with url and secret, which the API shows only when asked to
    include.
    """
    document: Json = {
        "id": account.new_id("ed_test"),
        "object": DESTINATION,
        "created": rfc3339(account.now()),
        "description": "",
        "enabled_events": list(patterns),
        "event_payload": "thin" if is_thin else "snapshot",
        "livemode": False,
        "name": name,
        "status": "enabled",
        "type": "webhook_endpoint",
        "updated": rfc3339(account.now()),
    }
    if not is_thin:
        document["snapshot_api_version"] = API_VERSION
    account.add(document)
    account.targets[document["id"]] = Target(document["id"], url, list(patterns), is_thin, [(secret, None)])
    return {**document, "webhook_endpoint": {"signing_secret": secret, "url": url}}


def retrieve_destination(account: Account, call: Call) -> Json:
    """GET /v2/core/event_destinations/{id}"""
    return account.get(DESTINATION, call.id)


def list_destinations(account: Account, call: Call) -> Json:
    """GET /v2/core/event_destinations, one page."""
    return {"data": account.all(DESTINATION)[::-1], "next_page_url": None, "previous_page_url": None}


ROUTES: tuple[Route, ...] = (
    route("POST", "/v1/webhook_endpoints", create, "url enabled_events api_version description metadata"),
    route("GET", "/v1/webhook_endpoints", listed),
    route("GET", "/v1/webhook_endpoints/{webhook_endpoint}", retrieve),
    route(
        "POST",
        "/v1/webhook_endpoints/{webhook_endpoint}",
        change,
        "url enabled_events description metadata disabled",
    ),
    route("DELETE", "/v1/webhook_endpoints/{webhook_endpoint}", delete),
    route(
        "POST",
        "/v2/core/event_destinations",
        create_destination,
        "name type event_payload enabled_events webhook_endpoint include description",
    ),
    route("GET", "/v2/core/event_destinations", list_destinations),
    route("GET", "/v2/core/event_destinations/{id}", retrieve_destination),
)
