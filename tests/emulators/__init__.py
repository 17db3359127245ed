"""Programmable stand-ins for the services that Weir talks to; each is itself checked against captures."""
