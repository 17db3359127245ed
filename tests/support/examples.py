"""How many examples a property is tried with: few in the fast suite, the same ones each time; many elsewhere."""

from hypothesis import settings


def examples(few: int, many: int) -> int:
    """`few` under the profile `same` (`tests/conftest.py`), `many` under `explore`."""
    return few if settings.default is not None and settings.default.derandomize else many
