"""Hard texts, and hypothesis strategies that make more of them."""

import random
from typing import Final

from hypothesis import strategies as st

SNIPPETS: Final = (
    *(
        "hello",
        " world",
        "Don't",
        " I'VE",
        "'ſ",
        "HelloWorld",
        " явля",
        "加拿大",
        "日本語",
        "，你好。",
        "หนังสือ",
    ),
    *(
        "e\u0301",
        "é",
        "हिन्दी",
        "\u09a1\u09bc",
        "ǅ",
        "ΑΒγ",
        "ПриВЕТ",
        "🦙",
        "😶\u200d🌫️",
        "\u2126",
        "\u3000",
        "\x1c",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\n\n",
        "\t",
        "\u00a0",
        "\x85",
        ".",
        ",",
        "!?",
        "/",
        "'",
        '"',
        "_",
        "<",
        "|>",
        "~~~",
    ),
    *(
        "0",
        "12345",
        "½",
        "Ⅷ",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<|im_",
        '{"a": 1}',
        "a_b",
        "http://x.y/z?q=1",
    ),
)

texts = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=6)), max_size=24).map("".join)
"""Texts where words, marks, white space and special tokens meet in all ways."""

plain_texts = texts.map(lambda text: text.encode("utf-8", "replace").decode())
"""The same without lone surrogates, which other libraries do not take."""

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
"""Anything that a JSON document can hold."""

_RANGES: Final = (
    *(
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x300, 0x370),
        (0x370, 0x530),
        (0x590, 0x780),
        (0x900, 0xE80),
        (0x1000, 0x1200),
    ),
    *(
        (0x1E00, 0x2100),
        (0x2100, 0x2C00),
        (0x3000, 0x3200),
        (0x4E00, 0x5200),
        (0xAC00, 0xAF00),
        (0xF900, 0xFB10),
    ),
    *((0xFE00, 0xFFF0), (0x10300, 0x10400), (0x1D400, 0x1D500), (0x1F300, 0x1F700), (0x20000, 0x20100)),
)


def hard_texts(count: int, *, seed: int) -> list[str]:
    """`count` texts from Unicode ranges and snippets; the same ones for the same seed."""
    chance = random.Random(seed)
    found = []
    for nth in range(count):
        low, high = _RANGES[nth % len(_RANGES)]
        parts = []
        for _ in range(chance.randrange(1, 30)):
            is_snippet = chance.randrange(3) == 0
            parts.append(chance.choice(SNIPPETS) if is_snippet else chr(chance.randrange(low, high)))
        found.append("".join(parts))
    return found
