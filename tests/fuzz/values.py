"""JSON values and bytes, bent: each step is one that some client, server or proxy might take."""

import json
from itertools import pairwise
from random import Random
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 10**6, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "0", "null", "[DONE]", "\u0000", "\ud800", "é€😀", "a" * 300, "data: x\n\n", "\r\n\r\n", "</think>"),
    *([], {}, [[]], [{}], {"": ""}, [None], {"a": [1, {"b": None}]}),
)


def bent(dice: Random, value: Any, times: int = 1) -> Any:
    """A copy of a JSON value with so many places changed."""
    copy = json.loads(json.dumps(value))
    for _ in range(times):
        copy = _bent_once(dice, copy)
    return copy


def _bent_once(dice: Random, value: Any) -> Any:
    """Go down somewhere, and change what is there."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(list(value))
        return _bent_key(dice, value, key) if dice.random() < 0.25 else {**value, key: _bent_once(dice, value[key])}
    if isinstance(value, list) and value and dice.random() < 0.85:
        at = dice.randrange(len(value))
        match dice.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, *value[at:]]
            case _:
                return [*value[:at], _bent_once(dice, value[at]), *value[at + 1 :]]
    return dice.choice(ODD) if dice.random() < 0.7 else nested(dice, value)


def _bent_key(dice: Random, value: dict[str, Any], key: str) -> dict[str, Any]:
    rest = {name: part for name, part in value.items() if name != key}
    match dice.randrange(4):
        case 0:
            return rest
        case 1:
            return {**rest, dice.choice([key.upper(), key + " ", "", "ſ" + key]): value[key]}
        case 2:
            return {**value, dice.choice(["usage", "error", "timings", "choices", "delta", "n", "stop"]): value[key]}
        case _:
            return {**value, key: dice.choice(ODD)}


def nested(dice: Random, value: Any) -> Any:
    """A value deep inside others."""
    for _ in range(dice.choice([1, 2, 5, 60, 254, 300])):
        value = [value] if dice.random() < 0.5 else {"a": value}
    return value


def written(dice: Random, value: Any) -> bytes:
    """JSON as some writer puts it: spaces, escapes, numbers that are none in JSON, half of a surrogate pair."""
    spaced: tuple[str, str] = dice.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    ascii_only = dice.random() < 0.5
    text = json.dumps(value, ensure_ascii=ascii_only, separators=spaced, indent=dice.choice([None, None, None, 1]))
    return text.encode("utf-8", "surrogatepass")


def damaged(dice: Random, data: bytes) -> bytes:
    """Bytes with something broken in them."""
    if not data:
        return data
    at = dice.randrange(len(data))
    match dice.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + dice.randbytes(dice.randrange(1, 9)) + data[at:]
        case 3:
            return data[:at] + data[at + dice.randrange(1, 40) :]
        case 4:
            return data[:at] + data[at : at + dice.randrange(1, 200)] * 2 + data[at:]
        case _:
            return data.replace(
                dice.choice([b"\n", b":", b'"', b"{", b" "]), dice.choice([b"\r", b"", b"\r\n", b"\x00"])
            )


def cuts(dice: Random, data: bytes) -> list[bytes]:
    """The data in parts, none empty."""
    places = (
        sorted({dice.randrange(1, len(data)) for _ in range(dice.choice([0, 0, 1, 3, 9]))}) if len(data) > 1 else []
    )
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in pairwise(edges)]
