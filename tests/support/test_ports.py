"""A free port is one that a server can take, now and after an outage."""

import socket

import pytest

from tests.support.ports import NoFreePortError, free_port


def test_a_free_port_can_be_bound_and_a_taken_one_is_not_given() -> None:
    """It lies below the range from which Linux gives outgoing connections theirs."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        taken = server.getsockname()[1]
        assert 1024 < taken < 32768
        with pytest.raises(NoFreePortError):
            free_port([taken])
