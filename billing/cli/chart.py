"""Bars for the terminal: how long each is, in whole cells, and nothing about where the numbers come from.

Pure. A bar is as long as what was earned; its bright part is the margin, its dark part the cost. Where the cost is
above the revenue, the rest of the cost follows as a loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

COST, MARGIN, LOSS = "░", "█", "▓"


class Bar(NamedTuple):
    """One line of a chart: its label, and its money in the smallest unit, neither below 0."""

    label: str
    revenue: int
    cost: int
    text: str


class Cells(NamedTuple):
    """How many cells of each kind a bar has."""

    cost: int
    margin: int
    loss: int

    def __str__(self) -> str:
        """Draw it."""
        return COST * self.cost + MARGIN * self.margin + LOSS * self.loss


def cells(bars: Sequence[Bar], width: int) -> list[Cells]:
    """Return the cells of each bar, of which the longest has `width`; what is not nothing has one at least."""
    longest = max((max(bar.revenue, bar.cost) for bar in bars), default=0)

    def length(value: int) -> int:
        return 0 if value <= 0 or longest <= 0 else max(1, (2 * value * width + longest) // (2 * longest))

    found = []
    for bar in bars:
        earned, spent = length(bar.revenue), length(bar.cost)
        paid = min(earned, spent)
        found.append(Cells(paid, earned - paid, spent - paid))
    return found
