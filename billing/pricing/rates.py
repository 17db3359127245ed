"""Dated versions and the one lookup among them, `version_at`; and the cost of a model as such a version.

A version is in force from its `effective_from` until the next one's; the boundary instant belongs to the new
one. Versions are only ever added, so what held at a past instant changes only by a version that reaches back
to it. Of two with the same start the later recorded one holds: so a mistake is corrected before it begins.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Protocol, TypeVar

from billing.clock import Instant
from billing.money import Pico, PicoPerToken
from billing.pricing.quote import UnitPrices


class Version(Protocol):
    """What has a start and was recorded at some time; the id breaks ties, since ids grow."""

    @property
    def id(self) -> str:
        """The version's id, a UUIDv7: a greater one was made later."""

    @property
    def effective_from(self) -> Instant:
        """The first instant at which it holds."""

    @property
    def recorded_at(self) -> Instant:
        """When it was written down."""


_V = TypeVar("_V", bound=Version)
_effective_from = attrgetter("effective_from")


class Standing(StrEnum):
    """Where a version stands among those of the same subject, seen from an instant."""

    IN_FORCE = "in force"
    SCHEDULED = "scheduled"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class CostRate:
    """What a model costs from an instant on; a part without a rate (None) costs what its whole does."""

    id: str
    model: str
    input: PicoPerToken
    cached_input: PicoPerToken | None
    output: PicoPerToken
    reasoning: PicoPerToken | None
    request: Pico
    effective_from: Instant
    recorded_at: Instant
    image_input: PicoPerToken | None = None
    audio_input: PicoPerToken | None = None

    @property
    def unit_prices(self) -> UnitPrices:
        """The cost of every type, parts without a rate of their own at that of their whole."""
        return UnitPrices(
            input=self.input,
            cached_input=self.input if self.cached_input is None else self.cached_input,
            output=self.output,
            reasoning=self.output if self.reasoning is None else self.reasoning,
            request=self.request,
            image_input=self.input if self.image_input is None else self.image_input,
            audio_input=self.input if self.audio_input is None else self.audio_input,
        )


def in_order(versions: Iterable[_V]) -> tuple[_V, ...]:
    """Sort versions as `version_at` wants them: by start, then by when they were recorded."""
    return tuple(sorted(versions, key=attrgetter("effective_from", "recorded_at", "id")))


def version_at(versions: Sequence[_V], instant: Instant) -> _V | None:
    """Return the version in force at an instant, or None before the first; `versions` are in order."""
    position = bisect_right(versions, instant, key=_effective_from)
    return versions[position - 1] if position else None


def next_start(versions: Sequence[_V], instant: Instant) -> Instant | None:
    """Return the first start of a version after an instant; `versions` are in order."""
    position = bisect_right(versions, instant, key=_effective_from)
    return versions[position].effective_from if position < len(versions) else None


def standing(versions: Sequence[_V], version: _V, instant: Instant) -> Standing:
    """Say where one of `versions` stands at an instant.

    One that a later recorded version with the same start displaced never holds, so it counts as replaced
    even before its start.
    """
    holder = version_at(versions, max(instant, version.effective_from))
    assert holder is not None, "the version itself has begun by then"
    if version.effective_from > instant:
        return Standing.SCHEDULED if holder.id == version.id else Standing.REPLACED
    return Standing.IN_FORCE if holder.id == version.id else Standing.REPLACED
