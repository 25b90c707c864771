"""Writes the Gemma 2 decoder of a checkpoint as a GGUF file, by llama.cpp's own package, to be run beside pg2ref.

    python tools/gguf_decoder.py /data/random-3b-224 /data/random-3b-224.bf16.gguf
    python tools/gguf_decoder.py /data/random-3b-224 /data/random-3b-224.q8_0.gguf --to q8_0

The file has no vocabulary: it is for timing on embeddings and ids. Tensors as llama.cpp's converter leaves them: norms
hold 1 + w in float32, matrices keep their layout. Needs `pip install gguf`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from tool_help import help_of

from pg2ref.arrays import Array, bf16_to_f32
from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import canonical_name
from pg2ref.config import Gemma2Config

TYPES = {
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
ROWS_AT_ONCE = 4096  # of a matrix that is quantised
WHOLE_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(canonical: str) -> str:
    """llama.cpp's name of a tensor of the decoder."""
    path = canonical.removeprefix("language_model.").removesuffix(".weight")
    if path in WHOLE_NAMES:
        return f"{WHOLE_NAMES[path]}.weight"
    _, layer, leaf = path.split(".", 2)
    return f"blk.{layer}.{LAYER_NAMES[leaf]}.weight"


def add_config(writer: Any, config: Gemma2Config, file_type: LlamaFileType) -> None:
    """What llama.cpp must know of Gemma 2; whether a layer slides it knows itself."""
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0.0)
    writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)
    writer.add_sliding_window(config.sliding_window or config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def stored_matrix(bits_OD: Array, kind: GGMLQuantizationType) -> Array:
    """The bytes of a bf16 matrix in a type of GGUF."""
    if kind == GGMLQuantizationType.BF16:
        return bits_OD.view(np.uint8)
    pieces = (bits_OD[start : start + ROWS_AT_ONCE] for start in range(0, len(bits_OD), ROWS_AT_ONCE))
    return np.concatenate([gguf.quants.quantize(bf16_to_f32(piece), kind) for piece in pieces])


def decoder_tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    """llama.cpp's name and the bf16 bits of each tensor of the decoder."""
    for name, bits in load_checkpoint(folder).tensors.items():
        canonical = canonical_name(name)
        if canonical.startswith("language_model."):
            if bits.dtype != np.uint16:
                raise click.ClickException(f"{folder}: {name} is {bits.dtype}: give a checkpoint in bf16")
            yield gguf_name(canonical), bits


def write_decoder(folder: Path, path: Path, to: str) -> None:
    """Under a temporary name, renamed when it is whole."""
    kind, file_type = TYPES[to]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(temporary, "gemma2")
    add_config(writer, load_checkpoint(folder).config.text, file_type)
    for name, bits in decoder_tensors(folder):
        if bits.ndim == 1:
            writer.add_tensor(name, bf16_to_f32(bits) + np.float32(1))
        else:
            writer.add_tensor(name, stored_matrix(bits, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(temporary, path)


@click.command(help=help_of(__doc__))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--to", type=click.Choice(list(TYPES)), default="bf16", show_default=True, help="Of the matrices.")
def main(folder: Path, path: Path, to: str) -> None:
    """Parse, write, say what was written."""
    write_decoder(folder, path, to)
    click.echo(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, {to}")


if __name__ == "__main__":
    main()
