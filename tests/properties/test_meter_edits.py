"""The one edit inside an answer: `cost` joins the usage, and every other byte stays, in any JSON."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.meter.reading import parse, with_cost

INSERTED = (b'"cost":0.000123', b',"cost":0.000123')

keys = st.sampled_from(["usage", "a", "b", "", '"usage"', "us\\age", "é"])
strings = st.text(max_size=4) | st.sampled_from(['"usage":{"a":1}', "{", "}", "]", '\\"', "\\", '"usage"', "usage"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=4)
layouts = st.sampled_from([(None, (",", ":")), (None, (" , ", " : ")), (0, (",", ": ")), (2, (",", ":\t"))])


@given(
    st.lists(st.tuples(keys, values), max_size=4),
    objects,
    st.lists(st.tuples(keys, values), max_size=4),
    layouts,
    st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_cost_joins_the_usage_that_parsers_find(
    before: list[tuple[str, Any]],
    usage: dict[str, Any],
    after: list[tuple[str, Any]],
    layout: tuple[int | None, tuple[str, str]],
    is_ascii: bool,
) -> None:
    """Keys may come twice, nested as deep as they like, spelled in strings: the judge is another parser."""
    pairs = [*before, ("usage", usage), *after]
    indent, separators = layout
    text = separators[0].join(
        json.dumps(key, ensure_ascii=is_ascii)
        + separators[1]
        + json.dumps(value, indent=indent, separators=separators, ensure_ascii=is_ascii)
        for key, value in pairs
    )
    raw, found = f"{{{text}}}".encode(), json.loads(f"{{{text}}}")
    reported = found["usage"] if isinstance(found["usage"], dict) else None
    edited = with_cost(raw, "0.000123", reported)
    if reported is None:
        assert edited == raw
        return
    assert json.loads(edited) == {**found, "usage": {**reported, "cost": 0.000123}}
    inserted = INSERTED[bool(reported)]
    assert len(edited) == len(raw) + len(inserted)
    assert any(
        edited[:i] + edited[i + len(inserted) :] == raw for i in range(len(edited)) if edited.startswith(inserted, i)
    )


@given(st.binary(max_size=30) | st.text(alphabet='{}[]":,\\ useag1', max_size=40).map(str.encode), objects)
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_edit(raw: bytes, reported: dict[str, Any]) -> None:
    """Not even one that is no JSON."""
    edited = with_cost(raw, "0.5", reported)
    assert edited == raw or len(edited) - len(raw) in (len(b'"cost":0.5'), len(b',"cost":0.5'))


@given(values)
@settings(deadline=None)
def test_the_lenient_reader_reads_what_the_strict_one_does(value: Any) -> None:
    """A NaN in front sends a text to the other reader: the rest of it must come out alike."""
    text = json.dumps(value, ensure_ascii=True).encode()
    assert parse(text) == value
    assert parse(b"[NaN," + text + b"]") == [None, value]
