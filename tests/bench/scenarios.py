"""What is asked of each gateway, and one measurement of it."""

import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.gateways import Gateway
from tests.bench.processes import cpu_ns, pinned, rss_kib, status_of, wait_until_calm
from tests.bench.programs import BenchError

PROMPT_BYTES = 200
STREAM_SLACK_S = 2  # beyond twice the ideal duration; what is not over then, is unfinished


@dataclass(frozen=True, slots=True)
class Whole:
    """Closed-loop requests for a time, answered whole."""

    name: str
    connections: int
    prompt_bytes: int = PROMPT_BYTES


@dataclass(frozen=True, slots=True)
class Streams:
    """Parallel streams, together `events_per_s`; on each connection so many in succession."""

    name: str
    connections: int
    events_per_s: int
    succession: int = 1

    @property
    def interval_us(self) -> int:
        """The time between two events of one stream."""
        return 1_000_000 * self.connections // self.events_per_s


Scenario = Whole | Streams

SCENARIOS: tuple[Scenario, ...] = (
    Whole("whole answers, 1 connection", 1),
    Whole("whole answers, 32 connections", 32),
    Whole("whole answers, 128 connections", 128),
    Whole("whole answers, 40 KB prompt, 32 connections", 32, prompt_bytes=40_000),
    Streams("streams, one at a time", 1, 200, succession=50),
    Streams("streams, 1,000 events/s over 50", 50, 1_000),
    Streams("streams, 10,000 events/s over 200", 200, 10_000),
)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long one measurement lasts, in milliseconds."""

    whole_ms: int
    stream_ms: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One scenario at one gateway in one round. Times in microseconds: [p50, p90, p99, most]."""

    answers: int  # that came, right or wrong
    wrong: int  # not 200, cut, out of order, or without usage
    incomplete: int  # not over at the deadline
    events: int
    input_tokens: int
    output_tokens: int
    seconds: float
    cpu_us: float  # per right answer, or per token of a stream
    rss_mb: float
    latency_us: list[float]
    first_token_us: list[float]
    lateness_us: list[float]
    stream_hash: str

    @property
    def right(self) -> int:
        """Answers that were complete and correct."""
        return self.answers - self.wrong


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement needs besides the gateway and the scenario."""

    load: Path
    load_core: int
    upstream_port: int
    durations: Durations

    def measure(self, scenario: Scenario, gateway: Gateway) -> Sample:
        """Run the scenario once; CPU is that of all the gateway's processes while the load ran."""
        if isinstance(scenario, Streams):
            self._set_pace(scenario.interval_us)
        before = cpu_ns(gateway.root) if gateway.root else {}
        found = self._load(scenario, gateway)
        after = cpu_ns(gateway.root) if gateway.root else {}
        spent_us = sum(time - before.get(pid, 0) for pid, time in after.items()) / 1000
        if found["incomplete"] and gateway.root:
            wait_until_calm(gateway.root)
        units = found["events"] if isinstance(scenario, Streams) else found["answers"] - found["wrong"]
        return Sample(
            answers=found["answers"],
            wrong=found["wrong"],
            incomplete=found["incomplete"],
            events=found["events"],
            input_tokens=found["prompt_tokens"],
            output_tokens=found["completion_tokens"],
            seconds=found["seconds"],
            cpu_us=spent_us / units if units else 0.0,
            rss_mb=(rss_kib(gateway.root) if gateway.root else 0) / 1024,
            latency_us=found["latency_us"],
            first_token_us=found["first_token_us"],
            lateness_us=found["lateness_us"],
            stream_hash=found["hash"],
        )

    def _set_pace(self, interval_us: int) -> None:
        if status_of(self.upstream_port, f"/pace/{interval_us}", method="POST") != 200:
            raise BenchError("the stand-in model server doesn't answer")

    def _load(self, scenario: Scenario, gateway: Gateway) -> dict[str, Any]:
        words = [str(gateway.port), gateway.key, str(scenario.connections)]
        match scenario:
            case Whole():
                words += [str(scenario.prompt_bytes), "whole", str(self.durations.whole_ms)]
            case Streams():
                ideal_ms = self.durations.stream_ms
                events = max(1, ideal_ms * 1000 // scenario.succession // scenario.interval_us)
                deadline_ms = 2 * ideal_ms + STREAM_SLACK_S * 1000
                words += [str(PROMPT_BYTES), "stream"]
                words += [str(events), str(scenario.interval_us), str(scenario.succession), str(deadline_ms)]
        command = pinned(self.load_core, [self.load, *words])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise BenchError(f"the load generator failed at {gateway.name}: {done.stderr.strip()}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def median(values: list[float]) -> float:
    """The median; 0 of nothing, which the tables show as a blank."""
    return statistics.median(values) if values else 0.0
