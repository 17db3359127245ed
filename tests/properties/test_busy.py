"""An upstream's time, shared among its requests: nothing is lost, nobody pays for another, whoever comes and goes."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.reading import times_of
from proxy.meter.steps import Times
from proxy.relay.busy import NEVER, BusyClock, divided

steps = st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 5)), max_size=60)
"""How long nothing happens, in microseconds, and who comes, or goes if it is there."""


@given(steps)
def test_the_shares_are_the_busy_time(taken: list[tuple[int, int]]) -> None:
    """Σ shares + what is still to be given out = the time with anybody there; each is fair to a microsecond a step."""
    clock, now, busy = BusyClock(), 10**9, 0
    entered: dict[int, int] = {}
    fair: dict[int, Fraction] = {}
    shares: list[tuple[int, Fraction]] = []
    for passed, who in taken:
        now += passed
        busy += passed if entered else 0
        for each in entered:
            fair[each] += Fraction(passed, len(entered))
        assert clock.so_far(now) == clock.mark(now)
        if who in entered:
            shares.append((clock.leave(now) - entered.pop(who), fair.pop(who)))
        else:
            entered[who], fair[who] = clock.enter(now), Fraction(0)
    shares += [(clock.leave(now) - since, fair[who]) for who, since in entered.items()]
    assert 0 <= busy - sum(share for share, _ in shares) < 6, "what does not divide is carried on"
    assert all(abs(share - own) <= 6 for share, own in shares)


def test_two_at_once_have_half_each() -> None:
    """By hand: ten seconds alone, six together, one for who stays."""
    clock = BusyClock()
    first = clock.enter(0)
    second = clock.enter(10_000_000)
    assert clock.leave(16_000_000) - first == 13_000_000
    assert clock.leave(17_000_000) - second == 4_000_000
    assert clock.enter(99_000_000) == clock.mark(99_000_000), "nobody was there"
    assert clock.leave(98_000_000) == 14_000_000, "a clock that went back gives nothing, and takes nothing"


@given(
    st.integers(0, 10**12),
    st.integers(NEVER, 10**12),
    st.one_of(st.none(), st.builds(Times, st.integers(0, 10**9), st.integers(1, 10**9))),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_a_share_divides_without_a_rest(share: int, first: int, told: Times | None, computed: int, output: int) -> None:
    """Whatever is known; never negative."""
    prompt, generation = divided(share, first, told, computed, output)
    assert prompt + generation == share
    assert min(prompt, generation) >= 0


def test_a_share_divides_as_the_upstream_says() -> None:
    """Else by its first token, else by its tokens; a prompt without output has all."""
    assert divided(1_000, 10, Times(300, 700), 1, 1) == (300, 700)
    assert divided(1_000, 10, None, 1, 1) == (10, 990)
    assert divided(1_000, NEVER, None, 100, 90) == (100, 900)
    assert divided(1_000, NEVER, None, 7, 0) == divided(1_000, NEVER, None, 0, 0) == (1_000, 0)


def test_what_is_no_time_is_none() -> None:
    """An upstream may say anything."""
    for prompt in (float("nan"), float("inf"), -1, "12", None, True, 10**30):
        assert times_of({"timings": {"prompt_ms": prompt, "predicted_ms": 1.5}}) is None
    assert times_of({"timings": {"prompt_ms": 0, "predicted_ms": 0.0}}) is times_of({"timings": []}) is None
    assert times_of({"timings": {"prompt_ms": 0.0019, "predicted_ms": 12}}) == (1, 12_000)
