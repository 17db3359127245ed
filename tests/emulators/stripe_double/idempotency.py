"""Idempotency-Key as Stripe documents it: the first answer is kept and repeated, whatever it was.

v1: kept for 24 hours (Stripe: "at least"; the double forgets at exactly 24, the harder case). Other
parameters or another endpoint under the same key: 400. The same key while the first request runs: 409.
Malformed parameters and conflicts are not kept. v2: only successes are kept, for 30 days; a failed request
runs afresh.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .clock import DAY_S
from .errors import idempotency_in_use, idempotency_mismatch

KEPT_V1_S = DAY_S
KEPT_V2_S = 30 * DAY_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What went over the wire: enough to send it again, byte for byte."""

    status: int
    body: bytes
    headers: dict[str, str]
    request_id: str = ""


@dataclass(slots=True)
class Kept:
    """One key: the fingerprint of its request, and its answer once there is one."""

    fingerprint: str
    is_v2: bool
    since: int
    answer: Answer | None = None


def fingerprint(method: str, path: str, parameters: dict[str, Any]) -> str:
    """Equal for the same parameters in any order."""
    return f"{method} {path} {json.dumps(parameters, sort_keys=True, default=str)}"


class IdempotencyStore:
    """Keys of one account. Callers hold the account's lock."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def begin(self, key: str, print_: str, *, is_v2: bool, now: int) -> Answer | None:
        """The kept answer to repeat, or None when the request is to run. Raises for a mismatch or a running
        twin.
        """
        kept = self._kept.get(key)
        kept_s = KEPT_V2_S if is_v2 else KEPT_V1_S
        if kept is not None and kept.answer is not None and now - kept.since >= kept_s:
            kept = None
        if kept is None:
            self._kept[key] = Kept(print_, is_v2, now)
            return None
        if kept.fingerprint != print_:
            raise idempotency_mismatch(key)
        if kept.answer is None:
            raise idempotency_in_use(key)
        return kept.answer

    def finish(self, key: str, answer: Answer, *, is_stored: bool) -> None:
        """Keeps the answer, or forgets the key when nothing is to be kept."""
        kept = self._kept[key]
        if is_stored and not (kept.is_v2 and answer.status >= 400):
            kept.answer = answer
        else:
            del self._kept[key]
