"""A Hugging Face tokenizer.json, as far as it is a byte-level BPE with one split rule.

Invariant: a file is either understood completely or refused. Each part which changes counts (normalizer,
split rules, word prefixes and suffixes, byte fallback, the template that adds a BOS) is looked at; one of an
unknown kind is an error that names it, never a guess. Two flags of added tokens that only swallow
neighbouring spaces (`lstrip`, `rstrip`) are ignored: no model that we met sets them on a token that occurs in
text.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from billing.tokens.errors import VocabularyError
from billing.tokens.patterns import GPT2, PreTokenizer
from billing.tokens.ranks import Ranks, from_merges


@dataclass(frozen=True, slots=True)
class HuggingFaceTokenizer:
    """What one tokenizer.json says. `prompt_extra`: tokens which its template adds to every prompt."""

    ranks: Ranks
    pre_tokenizer: PreTokenizer
    specials: dict[str, int]
    prompt_extra: int


def parse_tokenizer_json(raw: bytes) -> HuggingFaceTokenizer:
    """The tokenizer in a tokenizer.json; VocabularyError for one that can not be counted with."""
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError):
        raise VocabularyError("not JSON") from None
    root = _table(parsed, "the file")
    model = _table(root.get("model"), "model")
    specials = dict(_added(root.get("added_tokens") or ()))
    ids = {text: token_id for text, token_id in _vocabulary(model).items() if text not in specials}
    keeps_whole_pieces = model.get("ignore_merges") is True
    return HuggingFaceTokenizer(
        ranks=from_merges(ids, _products(model.get("merges")), keeps_whole_pieces=keeps_whole_pieces),
        pre_tokenizer=PreTokenizer(
            regex=_regex(root.get("pre_tokenizer")),
            normalizes_nfc=_is_nfc(root.get("normalizer")),
            keeps_whole_pieces=keeps_whole_pieces,
        ),
        specials=specials,
        prompt_extra=_template_tokens(root.get("post_processor")),
    )


def _table(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise VocabularyError(f"{what} is not an object")
    return value


def _items(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise VocabularyError(f"{what} is not a list")
    return value


def _vocabulary(model: Mapping[str, object]) -> dict[str, int]:
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") is True:
        raise VocabularyError("not a byte-level BPE: only such vocabularies can be counted with")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise VocabularyError("subword prefixes and suffixes are not supported")
    found = {}
    for text, token_id in _table(model.get("vocab"), "model.vocab").items():
        if not isinstance(token_id, int):
            raise VocabularyError(f"model.vocab: the id of {text!r} is not a number")
        found[text] = token_id
    return found


def _products(merges: object) -> Iterable[str]:
    """What each merge joins to. A merge is a pair, or in files before 2024 both with a space between."""
    for merge in _items(merges, "model.merges"):
        if isinstance(merge, str):
            yield merge.replace(" ", "", 1)
        elif isinstance(merge, list) and len(merge) == 2:
            yield f"{merge[0]}{merge[1]}"
        else:
            raise VocabularyError("model.merges has an entry that is not a pair")


def _added(tokens: object) -> Iterable[tuple[str, int]]:
    for token in _items(list(tokens) if isinstance(tokens, tuple) else tokens, "added_tokens"):
        text, token_id = (
            _table(token, "an added token").get("content"),
            _table(token, "an added token").get("id"),
        )
        if not isinstance(text, str) or not isinstance(token_id, int):
            raise VocabularyError("an added token has no content or no id")
        yield text, token_id


def _steps(value: object, members: str) -> list[Mapping[str, object]]:
    """A pipeline's steps: none, one, or the members of a (possibly nested) sequence."""
    if value is None:
        return []
    step = _table(value, members)
    if step.get("type") != "Sequence":
        return [step]
    return [inner for member in _items(step.get(members), members) for inner in _steps(member, members)]


def _is_nfc(normalizer: object) -> bool:
    kinds = [step.get("type") for step in _steps(normalizer, "normalizers")]
    if any(kind != "NFC" for kind in kinds):
        raise VocabularyError(f"normalizer {kinds} is not supported (NFC or none is)")
    return bool(kinds)


def _regex(pre_tokenizer: object) -> str:
    """The one regex that splits text."""
    found = []
    for step in _steps(pre_tokenizer, "pretokenizers"):
        match step.get("type"):
            case "Split":
                found.append(_split_regex(step))
            case "ByteLevel":
                if step.get("add_prefix_space") is True:
                    raise VocabularyError("add_prefix_space is not supported")
                if step.get("use_regex", True) is True:
                    found.append(GPT2)
            case other:
                raise VocabularyError(f"pre-tokenizer {other!r} is not supported")
    if len(found) != 1:
        raise VocabularyError(f"{len(found)} split rules: exactly one is supported")
    return found[0]


def _split_regex(step: Mapping[str, object]) -> str:
    """A Split step's regex. Both accepted forms keep what matches, which is everything for the regexes in
    use."""
    regex = _table(step.get("pattern"), "pattern").get("Regex")
    form = (step.get("behavior"), step.get("invert", False))
    if not isinstance(regex, str) or form not in (("Isolated", False), ("Removed", True)):
        raise VocabularyError(f"a Split rule of form {form} is not supported")
    return regex


def _template_tokens(post_processor: object) -> int:
    """How many tokens are put around a single prompt (usually a BOS, or none)."""
    added = 0
    for step in _steps(post_processor, "processors"):
        match step.get("type"):
            case "ByteLevel":
                continue
            case "TemplateProcessing":
                pieces = _items(step.get("single"), "post_processor.single")
                added += sum("SpecialToken" in _table(piece, "a template's piece") for piece in pieces)
            case "RobertaProcessing" | "BertProcessing":
                added += 2
            case other:
                raise VocabularyError(f"post-processor {other!r} is not supported")
    return added
