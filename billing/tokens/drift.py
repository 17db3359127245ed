"""How far the upstream's token counts are from ours, per model and upstream. Integers only; no text comes
here."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Drift:
    """Tokens of `samples` requests as we counted them and as the upstream reported them."""

    model: str
    upstream: str
    counted: int
    reported: int
    samples: int = 1

    @property
    def per_mille(self) -> int | None:
        """Reported in thousandths of counted, to the nearest: 1000 is agreement. None where nothing was
        counted."""
        if self.counted <= 0:
            return None
        return (2000 * self.reported + self.counted) // (2 * self.counted)


def aggregate(drifts: Iterable[Drift]) -> tuple[Drift, ...]:
    """One Drift for each model and upstream, in order of their names."""
    totals: dict[tuple[str, str], Drift] = {}
    for drift in drifts:
        key = (drift.model, drift.upstream)
        total = totals.get(key)
        totals[key] = drift if total is None else _add(total, drift)
    return tuple(totals[key] for key in sorted(totals))


def _add(one: Drift, other: Drift) -> Drift:
    return replace(
        one,
        counted=one.counted + other.counted,
        reported=one.reported + other.reported,
        samples=one.samples + other.samples,
    )
