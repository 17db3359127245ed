"""What can be wrong with a vocabulary file: one error, whose message names the file and says what to do."""

from billing.errors import ConfigError


class VocabularyError(ConfigError):
    """A model's vocabulary can not be loaded."""
