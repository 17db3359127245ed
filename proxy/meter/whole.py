"""The meter of an answer that is not streamed: its usage, or its texts where it has none."""

from billing.tokens.counting import OutputTally, pieces
from proxy.meter.reading import has_usage, parse, timings_of, usage_of
from proxy.meter.steps import Settle


def settle(body: bytes) -> Settle:
    """Read the usage of a whole answer; a body that is no JSON object has none."""
    parsed = parse(body)
    if not isinstance(parsed, dict):
        return Settle(None, body)
    reported = parsed["usage"] if has_usage(parsed) else None
    for usage in (usage_of(parsed), timings_of(parsed)):
        if usage is not None and (usage.output_tokens or delivered(body).is_empty):
            break
    else:
        usage = None  # a report of no output beside text is none
    return Settle(usage, body, bool(parsed.get("error")), reported)


def delivered(body: bytes, *, has_stop_texts: bool = False) -> OutputTally:
    """Return the texts of an answer that came without usage, to be counted."""
    tally = OutputTally(has_stop_texts=has_stop_texts)
    for piece in pieces(parse(body)):
        tally.take(piece)
    return tally
