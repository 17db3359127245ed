"""What an upstream told of a response's tokens, which may be a part only, and typed access to what it sent.

A report counts if it can be one (I11, nothing is free by accident). No prompt is empty, so a prompt of 0 tokens comes
from a server that does not count (Ollama's streamed `/v1/messages`, LM Studio's embeddings) or that leaves the count
out when the prefix was cached (older Ollama): such a prompt is counted by Weir. What was told of the output is kept
all the same, because it is better than a count of the visible text (tool markup, `</think>` and the end of sequence
are invisible).
"""

from typing import Any, NamedTuple

from billing.tokens.counting import OutputTally
from billing.tokens.vocabulary import Vocabulary
from billing.usage import Usage
from proxy.meter.reading import parse


class Told(NamedTuple):
    """One report; None is a count that was left out. `is_idle`: the server says that it did nothing at all."""

    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    image_input_tokens: int = 0
    audio_input_tokens: int = 0
    is_idle: bool = False

    @property
    def usage(self) -> Usage | None:
        """The usage if the report is whole, None if something has to be counted."""
        if self.is_idle:
            return Usage(0, 0)
        if not self.input_tokens or self.output_tokens is None:
            return None
        return Usage(
            self.input_tokens,
            self.output_tokens,
            self.cached_input_tokens,
            self.reasoning_tokens,
            self.image_input_tokens,
            self.audio_input_tokens,
        )

    def over(self, tally: OutputTally) -> OutputTally:
        """Return the tally of what was delivered, with the output that was told in the place of its count."""
        return KnownOutput(self.output_tokens, tally) if self.output_tokens and self.output_tokens > 0 else tally


IDLE = Told(0, 0, is_idle=True)


class KnownOutput(OutputTally):
    """An output that the upstream counted, for a response whose prompt it did not count."""

    __slots__ = ("_delivered", "_tokens")

    def __init__(self, tokens: int, delivered: OutputTally) -> None:
        super().__init__()
        self.deltas = tokens
        self.finishes = delivered.finishes
        self._tokens = tokens
        self._delivered = delivered

    @property
    def seen(self) -> OutputTally:
        """The text that was seen, for whoever doubts the upstream's count."""
        return self._delivered

    @property
    def is_empty(self) -> bool:
        """Never: something was generated."""
        return False

    def output_tokens(self, vocabulary: Vocabulary) -> int:  # noqa: ARG002 -- told, not counted
        """Return what the upstream told."""
        return self._tokens

    def reasoning_tokens(self, vocabulary: Vocabulary) -> int:
        """Return the reasoning that was seen."""
        return self._delivered.reasoning_tokens(vocabulary)


def proven(told: Told | None, delivered: OutputTally) -> Usage | None:
    """Return the usage that was told, None if it was not, or if it tells of no output beside text that was seen."""
    usage = told.usage if told is not None else None
    return None if usage is not None and not usage.output_tokens and not delivered.is_empty else usage


def parsed_object(data: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None for anything else."""
    parsed = parse(data)
    return parsed if isinstance(parsed, dict) else None


def mapping(value: object) -> dict[str, Any]:
    """Return an object, empty for anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list; none for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def string(value: object) -> str:
    """Return a text, empty for anything else."""
    return value if isinstance(value, str) else ""


def count(value: object) -> int | None:
    """Return an integer, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
