"""What a client's leaving means for the answer that is still being generated: a policy of its key.

    cancel          the model server is stopped at once; billed is what was generated until then (the default)
    drain           the answer is read to its end, and billed as the server reports it
    drain:TOKENS    so many more tokens are let through first; what they do not end is stopped, and counted

Draining is for customers whose answers matter without them: tool calls with effects, answers kept by a store behind a
proxy of theirs. A client that leaves before the server has its request is not drained: nothing was begun.
"""

import re
from typing import Final, NamedTuple, Self

from billing.errors import UsageError

DRAIN_TOKENS_MAX: Final = 10**9
_FORM: Final = re.compile(r"(cancel)|drain(?::([0-9]{1,10}))?")


class Disconnect(NamedTuple):
    """How many more tokens may be generated for a client that has left: None is all of them, 0 none."""

    tokens_more: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a policy. Raises UsageError for what is none; `drain:0` is `cancel`."""
        found = _FORM.fullmatch(text.strip().lower())
        if found is None or int(found[2] or 0) > DRAIN_TOKENS_MAX:
            raise UsageError(
                f"{text[:40]!r} is no policy; write cancel, drain, or drain:TOKENS (up to {DRAIN_TOKENS_MAX})"
            )
        if found[1] is not None:
            return cls(0)
        return cls(None if found[2] is None else int(found[2]))

    @property
    def text(self) -> str:
        """The policy as it is written."""
        if self.tokens_more is None:
            return "drain"
        return f"drain:{self.tokens_more}" if self.tokens_more else "cancel"


CANCEL: Final = Disconnect(0)
