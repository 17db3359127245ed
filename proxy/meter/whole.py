"""The meter of an answer that is not streamed: its usage, or its texts where it has none."""

from billing.tokens.counting import OutputTally, pieces
from billing.usage import Usage
from proxy.meter.reading import has_usage, parse, timings_of, usage_of
from proxy.meter.steps import Settle


def settle(body: bytes) -> Settle:
    """Read the usage of a whole answer; a body that is no JSON object has none."""
    parsed = parse(body)
    if not isinstance(parsed, dict):
        return Settle(None, body)
    reported = parsed["usage"] if has_usage(parsed) else None
    usage = _sound(usage_of(parsed), body) or _sound(timings_of(parsed), body)
    return Settle(usage, body, bool(parsed.get("error")), reported)


def _sound(usage: Usage | None, body: bytes) -> Usage | None:
    """Return a report, None for one of no output beside text."""
    return usage if usage is None or usage.output_tokens or delivered(body).is_empty else None


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return the texts of an answer that came without usage, to be counted."""
    tally = OutputTally(has_stop_texts=has_stop_texts)
    for piece in pieces(parse(body)):
        tally.take(piece)
    return tally
