"""What an exchange needs of its client, so that it knows no server: `proxy/edge/turn.py` is one."""

from typing import Protocol


class Client(Protocol):
    """The client's side of an exchange; never written to after it has gone."""

    keep_alive: bool
    has_chunks: bool

    def send(self, data: bytes) -> None:
        """Write bytes to the client."""

    def finish(self) -> None:
        """The response is complete."""

    def give_up(self) -> None:
        """Break the connection; the exchange is told that its client has gone."""
