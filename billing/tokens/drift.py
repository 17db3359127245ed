"""How far a server's token counts are from ours: sums of samples, and what they say of the server.

Integers only; no text comes here. Each sample brings the slack that an honest server has: what its answer shows
nothing of (markup, stop texts), and what its template may add where that is not known. Slack adds up over the samples,
so that a difference within it proves nothing, and one beyond it can not be honest.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TOKENS_MAX: Final = 10**9
"""A report above this counts as this: sums of samples stay within 64 bits for nine billion of them."""

OUTLIERS_PER_SAMPLES: Final = 100
"""One sample in so many may be odd (a model that writes a text in unusual tokens) before its server is accused."""


class Verdict(StrEnum):
    """What the samples say of a server's counts."""

    NONE = "not compared"
    EXACT = "exact"
    WITHIN = "within slack"
    OVER = "over-reports"
    UNDER = "under-reports"


@dataclass(frozen=True, slots=True)
class Side:
    """Sums over samples of prompts, or of outputs: as the server reported them and as we counted them.

    `over` and `under` are samples beyond their own slack; `worst_over` and `worst_under` (0 or less) the largest
    differences of one sample.
    """

    samples: int = 0
    reported: int = 0
    counted: int = 0
    slack: int = 0
    over: int = 0
    under: int = 0
    worst_over: int = 0
    worst_under: int = 0

    @property
    def drift(self) -> int:
        """Tokens reported more than counted; negative: less."""
        return self.reported - self.counted

    @property
    def verdict(self) -> Verdict:
        """What these sums say. Drift that cancels over samples does not hide those beyond their own slack."""
        if not self.samples:
            return Verdict.NONE
        if self.drift > self.slack or self._is_often(self.over):
            return Verdict.OVER
        if -self.drift > self.slack or self._is_often(self.under):
            return Verdict.UNDER
        is_exact = self.worst_over == self.worst_under == 0
        return Verdict.EXACT if is_exact else Verdict.WITHIN

    def _is_often(self, outliers: int) -> bool:
        return outliers * OUTLIERS_PER_SAMPLES > self.samples

    def __add__(self, other: "Side") -> "Side":
        """Return the sums over both."""
        return Side(
            self.samples + other.samples,
            self.reported + other.reported,
            self.counted + other.counted,
            self.slack + other.slack,
            self.over + other.over,
            self.under + other.under,
            max(self.worst_over, other.worst_over),
            min(self.worst_under, other.worst_under),
        )


def compared(reported: int, counted: int, slack: int) -> Side:
    """Return one sample."""
    reported = max(0, min(reported, TOKENS_MAX))
    drift = reported - counted
    return Side(1, reported, counted, slack, int(drift > slack), int(-drift > slack), max(0, drift), min(0, drift))
