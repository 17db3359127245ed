"""Free TCP ports on the loopback interface, for servers that the tests start."""

import random
import socket
from collections.abc import Sequence

# Below Linux's ephemeral range, so that no outgoing connection takes the port while its server is down.
PORTS = range(15000, 32000)
ATTEMPTS_MAX = 50


class NoFreePortError(Exception):
    """Something occupies the machine's ports: look at `ss -ltn`."""


def free_port(ports: Sequence[int] = PORTS) -> int:
    """A port of these that nobody listens on now; two calls may give the same until the first is bound."""
    for port in random.sample(ports, min(ATTEMPTS_MAX, len(ports))):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NoFreePortError("every port that was tried is taken")
