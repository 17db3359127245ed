"""Drift: sums by model and upstream, and a ratio in whole thousandths."""

from hypothesis import given
from hypothesis import strategies as st

from billing.tokens.drift import Drift, aggregate

drifts = st.lists(
    st.builds(
        Drift,
        model=st.sampled_from(["a", "b"]),
        upstream=st.sampled_from(["llamacpp b1", "vllm 0.32"]),
        counted=st.integers(0, 10**12),
        reported=st.integers(0, 10**12),
    )
)


def test_the_ratio_is_in_thousandths_to_the_nearest() -> None:
    """1000 is agreement, 2000 twice as much; nothing counted has no ratio."""
    assert Drift("m", "u", counted=44, reported=44).per_mille == 1000
    assert Drift("m", "u", counted=44, reported=88).per_mille == 2000
    assert Drift("m", "u", counted=2000, reported=1999).per_mille == 1000
    assert Drift("m", "u", counted=2000, reported=1998).per_mille == 999
    assert Drift("m", "u", counted=3, reported=0).per_mille == 0
    assert Drift("m", "u", counted=0, reported=7).per_mille is None


def test_samples_add_up_by_model_and_upstream() -> None:
    """One row for each pair, in order of names."""
    found = aggregate(
        [Drift("b", "v1", 10, 11), Drift("a", "v1", 1, 1), Drift("b", "v1", 30, 33), Drift("b", "v2", 5, 5)]
    )
    assert found == (Drift("a", "v1", 1, 1), Drift("b", "v1", 40, 44, samples=2), Drift("b", "v2", 5, 5))
    assert found[1].per_mille == 1100


@given(drifts)
def test_no_token_is_lost_in_the_sum(found: list[Drift]) -> None:
    """Totals and samples are kept, whatever the order."""
    rows = aggregate(found)
    assert sum(row.counted for row in rows) == sum(row.counted for row in found)
    assert sum(row.reported for row in rows) == sum(row.reported for row in found)
    assert sum(row.samples for row in rows) == len(found)
    assert aggregate(reversed(found)) == rows
