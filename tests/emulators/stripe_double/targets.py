"""The webhook sender's view of a destination: where, which events, and what signs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def matches(kind: str, pattern: str) -> bool:
    """Whether an event type falls under `*`, `invoice.*` or its own name."""
    return pattern in ("*", kind) or (pattern.endswith(".*") and kind.startswith(pattern[:-1]))


@dataclass(slots=True)
class Target:
    """The sender's view of one destination: where, what, and what it signs with (secret, valid until)."""

    id: str
    url: str
    patterns: list[str]
    is_thin: bool
    secrets: list[tuple[str, int | None]]
    is_enabled: bool = True

    def wants(self, event: dict[str, Any]) -> bool:
        """Whether this event goes here."""
        is_thin = event["object"] == "v2.core.event"
        return self.is_enabled and is_thin == self.is_thin and any(matches(event["type"], p) for p in self.patterns)

    def live_secrets(self, now: int) -> list[str]:
        """Secrets that sign now: one, or two while a roll is under way."""
        return [secret for secret, until in self.secrets if until is None or now < until]
