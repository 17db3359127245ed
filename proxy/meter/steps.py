"""What a meter says: the end of a response as one value, so that its last bytes can't be had without its usage.

Values of the hot path are NamedTuples: as immutable as a frozen dataclass, and made in a quarter of its time.
"""

from typing import Any, NamedTuple

from billing.usage import Usage


class Times(NamedTuple):
    """What an upstream says it spent on a prompt and on the output, in microseconds; not both are 0."""

    prompt_us: int
    generation_us: int


class Settle(NamedTuple):
    """Record this, then send `raw`, the last bytes of the response.

    `usage` is what the upstream reported, None if it reported nothing. `is_error`: the upstream said, inside a
    successful response, that it failed. `reported` is the usage object as it stands in `raw`, for `with_cost`. `times`
    is None where the upstream tells none. `broke_off`: the stream ended without an end, and without saying why: that is
    an error, too, and the client has to be told.
    """

    usage: Usage | None
    raw: bytes
    is_error: bool = False
    reported: dict[str, Any] | None = None
    times: Times | None = None
    broke_off: bool = False


class Outputs(NamedTuple):
    """How many outputs a request asks for: prompts × n. llama.cpp reports usage for each apart."""

    prompts: int = 1
    n: int = 1

    @property
    def total(self) -> int:
        """Number of outputs."""
        return self.prompts * self.n
