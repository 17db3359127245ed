"""Sends the outbox's messages: POST, signed, until it is answered with a 2xx, at the intervals of the specification.

At least once: a message whose answer was lost is sent again, under the same id. A redirect is no delivery: what is
signed for one address is not shown to another. 410 means that nobody wants it; it is not sent again.
"""

import http.client
import logging
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from billing.clock import SECOND_US, Clock
from billing.config import Config
from billing.ledger import notifications
from billing.ledger.database import Database
from billing.ledger.notifications import Notification
from billing.notify import signing

RETRIES_S = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""https://www.standardwebhooks.com, "Retries": over three days."""

ROWS_MAX = 50
TIMEOUT_S = 10
ANSWER_BYTES_MAX = 4_096
_GONE = 410

log = logging.getLogger("weir.notify")


class Target(NamedTuple):
    """Where messages go, and what they are signed with."""

    url: str
    secret: str


def deliver(config: Config, database: Database, now: Clock) -> int:
    """Send what is due; return how many messages were delivered."""
    target = Target(config.notify.url, config.notify.secret)
    with database.reading() as conn:
        waiting = notifications.due(conn, now(), ROWS_MAX)
    delivered = 0
    for message in waiting:
        answer = _sent(target, message, now() // SECOND_US)
        is_over = answer.isdigit() and (200 <= int(answer) < 300 or int(answer) == _GONE)
        again_s = None if is_over or message.attempts >= len(RETRIES_S) else RETRIES_S[message.attempts]
        at = now()
        with database.writing() as conn:
            notifications.settle(conn, message.id, answer, at, None if again_s is None else at + again_s * SECOND_US)
        delivered += answer.startswith("2")
        if not answer.startswith("2"):
            log.warning("notify.refused", extra={"notification": message.id, "answer": answer, "again_s": again_s})
    return delivered


def _sent(target: Target, message: Notification, timestamp_s: int) -> str:
    """Send once; return the status, or what went wrong. Never raises for what a network may do."""
    address, body = urlsplit(target.url), message.body.encode()
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    lines = {"content-type": "application/json", "user-agent": "weir", "connection": "close"}
    lines |= signing.headers(target.secret, message.id, timestamp_s, body)
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(address.netloc, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, body, lines)
        answer = connection.getresponse()
        answer.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    else:
        return str(answer.status)
    finally:
        connection.close()
