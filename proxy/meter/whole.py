"""The meter of an answer that is not streamed: its usage, or its texts where it has none."""

from billing.tokens.counting import OutputTally, pieces
from billing.usage import Usage
from proxy.meter.reading import has_usage, parse, times_of, timings_of, usage_of
from proxy.meter.steps import Settle
from proxy.meter.told import KnownOutput


def settle(body: bytes) -> Settle:
    """Read the usage of a whole answer; a body that is no JSON object has none."""
    parsed = parse(body)
    if not isinstance(parsed, dict):
        return Settle(None, body)
    reported = parsed["usage"] if has_usage(parsed) else None
    usage = _sound(usage_of(parsed), body) or _sound(timings_of(parsed), body)
    return Settle(usage, body, bool(parsed.get("error")), reported, times_of(parsed))


def _sound(usage: Usage | None, body: bytes) -> Usage | None:
    """Return a report, None for one of an empty prompt, which is counted, or of no output beside text."""
    if usage is None or not usage.input_tokens:
        return None
    return usage if usage.output_tokens or delivered(body).is_empty else None


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return the texts of an answer that came without usage, to be counted; its output may be told all the same."""
    tally, parsed = OutputTally(has_stop_texts=has_stop_texts), parse(body)
    for piece in pieces(parsed):
        tally.take(piece)
    usage = usage_of(parsed)
    if usage is not None and not usage.input_tokens and usage.output_tokens > 0:
        return KnownOutput(usage.output_tokens, tally)
    return tally
