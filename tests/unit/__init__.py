"""Tests of one module each, without a database, a process or a socket."""
