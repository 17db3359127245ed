"""What a model's tokens cost on own machines: as they were, as they should be sold, and why the two differ.

A machine's time for prompts is spread over their tokens, and its time for output over the tokens generated. A prompt
token from the cache takes next to no time; it counts as a tenth of a computed one, since the memory that kept it was
not free, and since that is what it is mostly sold at.

`variances` compares what was booked (standard cost: tokens × the rates of their time) with what the machines cost, and
takes as its measure a reference: what a microsecond of busy and of idle time cost then, and how many of them a token
took. Of one machine and model, with T for the time taken now and T0 for the time that the reference would have taken
for the same tokens, each at the reference's price:

    price        actual cost - T          time cost more (power, rent, another machine)
    efficiency   T - T0                   tokens took more time
    volume       T0 - booked              the rates' allowance for idle time; negative: so much of it the tokens paid
    idle         idle time                time in which nobody was served, which those allowances are to cover

Invariant: the four parts add up to actual - booked, to the picounit, since each ends where the next begins. Where the
reference knows nothing (a new model, a new machine) the present is its own measure: that part is then 0.
"""

from dataclasses import dataclass, fields
from fractions import Fraction

from billing.money import Pico, PicoPerToken, publish_rate

CACHED_AS_ONE = 10
"""So many cached prompt tokens cost as much as one that is computed."""

PPM = 1_000_000


@dataclass(slots=True)
class Worked:
    """What a machine did for a model over some time, what that cost, and what it was booked at; in picounits."""

    requests: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    prompt_us: int = 0
    generation_us: int = 0
    prompt: int = 0
    generation: int = 0
    booked: int = 0

    def add(self, other: "Worked") -> None:
        """Add what was done at another time, or elsewhere."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def time_us(self) -> int:
        """All its time."""
        return self.prompt_us + self.generation_us

    @property
    def cost(self) -> Pico:
        """All its cost."""
        return Pico(self.prompt + self.generation)

    @property
    def prompt_weight(self) -> int:
        """Its prompt tokens, in tenths of a computed one."""
        computed = self.input_tokens - self.cached_input_tokens
        return CACHED_AS_ONE * computed + self.cached_input_tokens


@dataclass(slots=True)
class Idle:
    """What a machine's idle time cost, and how long it was idle and busy."""

    cost: int = 0
    idle_us: int = 0
    busy_us: int = 0

    def add(self, other: "Idle") -> None:
        """Add another time."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def used_ppm(self) -> int | None:
        """Return the busy part of the time in millionths; None if there was no time."""
        whole_us = self.idle_us + self.busy_us
        return PPM * self.busy_us // whole_us if whole_us else None


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates per token; None where there were no such tokens."""

    input: PicoPerToken | None
    cached_input: PicoPerToken | None
    output: PicoPerToken | None


def rates(worked: Worked, prompt: Fraction | int, generation: Fraction | int) -> Rates:
    """Spread two amounts over the tokens that were worked on, rounded as rates are."""
    weight, output = worked.prompt_weight, worked.output_tokens
    return Rates(
        input=_rate(Fraction(prompt) * CACHED_AS_ONE, weight),
        cached_input=_rate(Fraction(prompt), weight) if worked.cached_input_tokens > 0 else None,
        output=_rate(Fraction(generation), output),
    )


def _rate(amount: Fraction, tokens: int) -> PicoPerToken | None:
    return publish_rate(amount.numerator, amount.denominator * tokens) if tokens > 0 else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one machine did for one model, and for all; and its idle time."""

    worked: Worked
    everything: Worked
    idle: Idle


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Rates that recover a model's part of its machines' cost, idle time included."""

    rates: Rates
    busy: Fraction
    idle: Fraction


def suggest(seen: list[Seen], used_ppm: int | None) -> Suggestion:
    """Return the rates at which a model's tokens pay for its machines.

    Each model bears the idle time of its machine in proportion to its own time. That is the idle time there was, or
    what there will be if the machine is busy for `used_ppm` millionths of the time (0 < it <= 10⁶).
    """
    prompt = generation = idle = Fraction(0)
    every = Worked()
    for each in seen:
        worked = each.worked
        every.add(worked)
        of_all = Fraction(worked.time_us, each.everything.time_us) if each.everything.time_us else Fraction(0)
        borne = _planned_idle(each, used_ppm) * of_all
        of_prompt = Fraction(worked.prompt_us, worked.time_us) if worked.time_us else Fraction(0)
        prompt += worked.prompt + borne * of_prompt
        generation += worked.generation + borne * (1 - of_prompt)
        idle += borne
    return Suggestion(rates(every, prompt, generation), prompt + generation - idle, idle)


def _planned_idle(each: Seen, used_ppm: int | None) -> Fraction:
    """Return what idle time costs beside this work; where there was none, it costs what busy time did."""
    idle = each.idle
    if used_ppm is None:
        return Fraction(idle.cost)
    if not idle.busy_us:
        return Fraction(0)
    planned_us = Fraction(idle.busy_us * (PPM - used_ppm), used_ppm)
    if idle.idle_us:
        return planned_us * Fraction(idle.cost, idle.idle_us)
    return planned_us * Fraction(each.everything.cost, idle.busy_us)


@dataclass(slots=True)
class Variance:
    """Standard and actual cost, and the parts of the difference; all in picounits."""

    standard: int = 0
    actual: int = 0
    volume: int = 0
    efficiency: int = 0
    price: int = 0
    idle: int = 0

    def add(self, other: "Variance") -> None:
        """Add another one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def difference(self) -> Pico:
        """How much more it cost than was booked."""
        return Pico(self.actual - self.standard)


@dataclass(frozen=True, slots=True)
class Reference:
    """What one machine did at another time: for one model, for all, and idle."""

    worked: Worked
    everything: Worked
    idle: Idle


def of_work(now: Worked, reference: Reference) -> Variance:
    """Explain the cost of one machine's work for one model."""
    cost, then = now.cost, reference.everything
    usual = _usual(now, reference.worked)
    if then.time_us:
        taken, expected = (_whole(each, then.cost, then.time_us) for each in (now.time_us, usual))
    else:
        taken, expected = cost, _whole(usual, cost, now.time_us) if now.time_us else cost
    return Variance(
        standard=now.booked,
        actual=cost,
        volume=expected - now.booked,
        efficiency=taken - expected,
        price=cost - taken,
    )


def of_idle(now: Idle, then: Idle) -> Variance:
    """Explain the cost of one machine's idle time."""
    usual = _whole(Fraction(now.idle_us), then.cost, then.idle_us) if then.idle_us else now.cost
    return Variance(actual=now.cost, price=now.cost - usual, idle=usual)


def _usual(now: Worked, then: Worked) -> Fraction:
    """Return the time that the reference would have taken for these tokens."""
    weight, output = then.prompt_weight, then.output_tokens
    of_prompt = Fraction(then.prompt_us, weight) * now.prompt_weight if weight > 0 else Fraction(now.prompt_us)
    return of_prompt + (Fraction(then.generation_us, output) * now.output_tokens if output > 0 else now.generation_us)


def _whole(time_us: Fraction | int, cost: int, per_us: int) -> int:
    """Return what a time costs at a cost per time, in whole picounits."""
    return int(time_us * Fraction(cost, per_us))
