"""The pure parts of the gateway, each attacked alone; over sockets they are attacked in `tests/acceptance`."""
