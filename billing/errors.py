"""Every error of ours in one tree: the docstring says whose fault it is, the message says what to do.

    WeirError                      exit 1
    ├── UsageError                 exit 2   the command's words are wrong
    │   └── InvalidAmountError              not a decimal, or too many decimals
    ├── NotFoundError              exit 3   no such customer, key, model, request
    ├── RefusedError               exit 4   well-formed, but a rule forbids it
    ├── ConfigError                exit 1   weir.toml or the environment
    ├── SchemaError                exit 1   the database is older or newer than this program
    ├── DatabaseAwayError          exit 1   the database can not be reached now
    └── StripeError                exit 1   Stripe refused, or could not be reached

What an API client is told is another table, `proxy/relay/refusals.py`: a client never sees these texts.
"""


class WeirError(Exception):
    """Something failed; the message is one line that says what to do."""

    exit_code = 1


class UsageError(WeirError):
    """The caller's words are wrong."""

    exit_code = 2


class InvalidAmountError(UsageError):
    """A text is not an amount or a rate that can be represented exactly."""


class NotFoundError(WeirError):
    """What was named does not exist."""

    exit_code = 3


class RefusedError(WeirError):
    """A rule of the product forbids what was asked."""

    exit_code = 4


class ConfigError(WeirError):
    """The configuration can not be used."""


class SchemaError(WeirError):
    """The database's schema is not this program's."""


class DatabaseAwayError(WeirError):
    """The database can not be reached."""


class StripeError(WeirError):
    """Stripe refused or could not be reached."""
