"""Tiny language models with random weights that llama.cpp really loads, and that anything can be said to.

`write` makes one in a few hundredths of a second. The vocabulary is SentencePiece-like: one token for every byte, so
that any UTF-8 text has tokens, and below those the printable characters, which are all the model ever says: byte and
control tokens have no weight in the output. Equal arguments make equal files; another seed or name, another model.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

SPACE = "▁"  # how SentencePiece writes a blank
LETTERS = [chr(code) for code in range(0x21, 0x7F)]
UNKNOWN, BEGIN, END = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


class Token(NamedTuple):
    text: str
    score: float
    kind: gguf.TokenType


def vocabulary() -> Iterator[Token]:
    yield Token("<unk>", 0, gguf.TokenType.UNKNOWN)
    yield Token("<s>", 0, gguf.TokenType.CONTROL)
    yield Token("</s>", 0, gguf.TokenType.CONTROL)
    for byte in range(256):
        yield Token(f"<0x{byte:02X}>", 0, gguf.TokenType.BYTE)
    # The tokenizer joins the pair with the best score; a letter with its blank before it is the longest piece here.
    for letter in LETTERS:
        yield Token(SPACE + letter, -1, gguf.TokenType.NORMAL)
    for rank, letter in enumerate([SPACE, *LETTERS]):
        yield Token(letter, -100 - rank, gguf.TokenType.NORMAL)


def write(
    path: Path,
    *,
    name: str = "tiny",
    seed: int = 0,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 2048,
    feed_forward: int = 256,
) -> Path:
    """Write the model to `path`; a larger `feed_forward` makes a larger file (6 * width * layers bytes for each)."""
    tokens = list(vocabulary())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.text for token in tokens])
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types([token.kind for token in tokens])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for tensor, values in _tensors(seed, tokens, width, layers, feed_forward):
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(
    seed: int, tokens: list[Token], width: int, layers: int, feed_forward: int
) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        """Scaled so that activations keep their size from layer to layer."""
        values = random.standard_normal((rows, columns), dtype=np.float32)
        return (values / np.sqrt(columns)).astype(np.float16)

    def ones() -> np.ndarray:
        return np.ones(width, dtype=np.float32)

    yield "token_embd.weight", matrix(len(tokens), width)
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", ones()
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{part}.weight", matrix(width, width)
        yield f"blk.{layer}.ffn_gate.weight", matrix(feed_forward, width)
        yield f"blk.{layer}.ffn_up.weight", matrix(feed_forward, width)
        yield f"blk.{layer}.ffn_down.weight", matrix(width, feed_forward)
    yield "output_norm.weight", ones()
    # The larger, the surer of itself: the best letter is then far above the silent tokens, whose logit is 0.
    output = matrix(len(tokens), width) * np.float16(8)
    output[[token.kind != gguf.TokenType.NORMAL for token in tokens]] = 0
    yield "output.weight", output


if __name__ == "__main__":
    write(Path(sys.argv[1]), name=Path(sys.argv[1]).stem)
