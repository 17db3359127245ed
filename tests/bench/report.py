"""The figures of a run as tables for people and as JSON for machines."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.scenarios import Sample, Scenario, Streams, median

# By scenario's name and gateway's name: one sample per round.
Results = dict[str, dict[str, list[Sample]]]
Figure = Callable[[Sample], float]


def over_rounds(samples: list[Sample], figure: Figure) -> float:
    """The median of one figure over the rounds."""
    return median([figure(sample) for sample in samples])


def ratio(samples: list[Sample], anchors: list[Sample] | None, figure: Figure) -> float | None:
    """The median of each round's ratio to the anchor; None where the anchor has no such figure."""
    pairs = [(figure(a), figure(b)) for a, b in zip(samples, anchors or [], strict=False)]
    ratios = [mine / theirs for mine, theirs in pairs if theirs > 0]
    return median(ratios) if ratios else None


def times_cheaper(samples: list[Sample], anchors: list[Sample] | None) -> float | None:
    """How many times the CPU of these the anchor took: the median of each round's ratio."""
    return ratio(anchors, samples, cpu_us) if anchors else None


def cpu_us(sample: Sample) -> float:
    """CPU per answer or event."""
    return sample.cpu_us


def rate(sample: Sample) -> float:
    """Right answers per second."""
    return sample.right / sample.seconds


def event_rate(sample: Sample) -> float:
    """Events per second."""
    return sample.events / sample.seconds


def first_token_ms(sample: Sample) -> float:
    """The median time to the first token."""
    return sample.first_token_us[0] / 1000


def show(console: Console, scenarios: tuple[Scenario, ...], results: Results) -> None:
    """Print one table per scenario."""
    for scenario in scenarios:
        by_gateway = results[scenario.name]
        table = _stream_table(by_gateway) if isinstance(scenario, Streams) else _whole_table(by_gateway)
        table.title = scenario.name
        console.print(table)


def _table(*columns: str) -> Table:
    table = Table(title_justify="left", title_style="bold")
    table.add_column("gateway")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _whole_table(by_gateway: dict[str, list[Sample]]) -> Table:
    columns = ("CPU us/request", "/ nginx", "litellm /", "requests/s", "/ direct", "p50 us", "p99 us")
    table = _table(*columns, "RSS MB", "wrong")
    for name, samples in by_gateway.items():
        table.add_row(
            name,
            _number(over_rounds(samples, cpu_us), 1),
            _ratio(ratio(samples, by_gateway.get("nginx"), cpu_us)),
            _ratio(times_cheaper(samples, by_gateway.get("litellm"))),
            _number(over_rounds(samples, rate), 0),
            _ratio(ratio(samples, by_gateway.get("direct"), rate)),
            _number(over_rounds(samples, lambda sample: sample.latency_us[0]), 0),
            _number(over_rounds(samples, lambda sample: sample.latency_us[2]), 0),
            _number(max(sample.rss_mb for sample in samples), 0),
            str(sum(sample.wrong + sample.incomplete for sample in samples)),
        )
    return table


def _stream_table(by_gateway: dict[str, list[Sample]]) -> Table:
    columns = ("CPU us/event", "/ nginx", "litellm /", "events/s", "added TTFT ms")
    table = _table(*columns, "late p50 ms", "late p99 ms", "RSS MB", "bytes", "unfinished", "wrong")
    for name, samples in by_gateway.items():
        table.add_row(
            name,
            _number(over_rounds(samples, cpu_us), 1),
            _ratio(ratio(samples, by_gateway.get("nginx"), cpu_us)),
            _ratio(times_cheaper(samples, by_gateway.get("litellm"))),
            _number(over_rounds(samples, event_rate), 0),
            _number(added_first_token_ms(samples, by_gateway.get("direct")), 2),
            _number(over_rounds(samples, lambda sample: sample.lateness_us[0]) / 1000, 2),
            _number(over_rounds(samples, lambda sample: sample.lateness_us[2]) / 1000, 2),
            _number(max(sample.rss_mb for sample in samples), 0),
            fidelity(samples, by_gateway.get("direct")),
            str(sum(sample.incomplete for sample in samples)),
            str(sum(sample.wrong for sample in samples)),
        )
    return table


def added_first_token_ms(samples: list[Sample], anchors: list[Sample] | None) -> float:
    """The median of each round's time to first token less that of the anchor."""
    pairs = zip(samples, anchors or [], strict=False)
    return median([first_token_ms(mine) - first_token_ms(theirs) for mine, theirs in pairs])


def fidelity(samples: list[Sample], anchors: list[Sample] | None) -> str:
    """Whether the events that came are byte for byte those that were sent."""
    sent = {sample.stream_hash for sample in anchors or []}
    got = {sample.stream_hash for sample in samples if sample.answers}
    if not sent or not got:
        return ""
    return "exact" if got == sent else "rewritten"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}" if value else ""


def _ratio(value: float | None) -> str:
    """Two digits where they tell something, none where they'd be noise."""
    return "" if not value else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def as_json(scenarios: tuple[Scenario, ...], results: Results) -> list[dict[str, Any]]:
    """The same figures, with each round's sample."""
    return [
        {"scenario": asdict(scenario), "gateways": _gateways_json(results[scenario.name])} for scenario in scenarios
    ]


def _gateways_json(by_gateway: dict[str, list[Sample]]) -> dict[str, dict[str, Any]]:
    nginx, direct, litellm = (by_gateway.get(name) for name in ("nginx", "direct", "litellm"))
    return {
        name: {
            "cpu_us": over_rounds(samples, cpu_us),
            "cpu_to_nginx": ratio(samples, nginx, cpu_us),
            "times_cheaper_than_litellm": times_cheaper(samples, litellm),
            "answers_per_s": over_rounds(samples, rate),
            "answers_per_s_to_direct": ratio(samples, direct, rate),
            "events_per_s": over_rounds(samples, event_rate),
            "latency_p50_us": over_rounds(samples, lambda sample: sample.latency_us[0]),
            "latency_p99_us": over_rounds(samples, lambda sample: sample.latency_us[2]),
            "first_token_added_ms": added_first_token_ms(samples, direct),
            "bytes": fidelity(samples, direct),
            "rss_mb": max(sample.rss_mb for sample in samples),
            "rounds": [asdict(sample) for sample in samples],
        }
        for name, samples in by_gateway.items()
    }
