"""Log lines for people and for machines: a constant event name, then its values as key=value.

What must not be logged (prompts, completions, keys, secrets) is never given to a logger; nothing is filtered here.
"""

import json
import logging
import sys
from typing import TextIO

from billing.clock import Instant, instant_text

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class LineFormatter(logging.Formatter):
    """2026-03-01T12:00:00Z WARNING weir.record record.waiting error=OperationalError rows=12."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as one line; a traceback follows on lines of its own."""
        values = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        head = (_instant(record), record.levelname, record.name, record.getMessage())
        line = " ".join([*head, *(f"{name}={_text(value)}" for name, value in values.items())])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _instant(record: logging.LogRecord) -> str:
    return instant_text(Instant(int(record.created * 1_000_000)))


def _text(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and not set(text) & set(' "=')
    return text if text and is_plain else json.dumps(text, ensure_ascii=False)


def to(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Send every log of this process to the stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=level)
