"""Which tensors a checkpoint must hold, under which names, in which shapes, and how they become `Params`.

One canonical name a tensor; the four families of names in circulation are folded into it by `canonical_name`:

    A  the release of December 2024       language_model.model.X        vision_tower.vision_model.X
    B  saved by Transformers 5.23         language_model.model.X        vision_tower.X
    C  its modules in memory              model.language_model.X        model.vision_tower.X        lm_head.weight
    D  Transformers 4.52 to 4.57          model.language_model.X        model.vision_tower.vision_model.X
"""

from collections.abc import Mapping
from typing import Any

from pg2ref.config import Gemma2Config, PaliGemmaConfig, SiglipConfig
from pg2ref.model.gemma2 import DecoderLayer, Gemma2Params
from pg2ref.model.ops import Affine
from pg2ref.model.paligemma import Params
from pg2ref.model.siglip import PatchEmbedding, SiglipLayer, SiglipParams

Shapes = dict[str, tuple[int, ...]]
LM_HEAD = "lm_head.weight"
# Buffers that old files carry and nothing reads, and SigLIP's pooling head, which PaliGemma has no use for.
IGNORED_SUFFIXES = ("position_ids", "rotary_emb.inv_freq")
IGNORED_PREFIXES = ("vision_tower.head.",)
# The weights that `linear` multiplies with, or that an embedding is read from: these may be quantised.
MATRIX_LEAVES = frozenset(
    "embed_tokens lm_head linear q_proj k_proj v_proj o_proj out_proj gate_proj up_proj down_proj fc1 fc2".split()
)


def canonical_name(name: str) -> str:
    """The name that `expected_shapes` uses for a tensor of any family (Transformers conversion_mapping.py)."""
    name = name.removeprefix("model.").replace("language_model.model.", "language_model.", 1)
    name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
    return name.removeprefix("language_model.") if name == "language_model." + LM_HEAD else name


def released_name(canonical: str) -> str:
    """The name a tensor has in the release (family A)."""
    name = canonical.replace("language_model.", "language_model.model.", 1)
    name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return "language_model." + name if name == LM_HEAD else name


def is_ignored(canonical: str) -> bool:
    """Whether a tensor may lie in the file although the model has no place for it."""
    return canonical.endswith(IGNORED_SUFFIXES) or canonical.startswith(IGNORED_PREFIXES)


def is_matrix(canonical: str) -> bool:
    """Whether a tensor is the weight of a linear layer or an embedding, the patch embedding and positions apart."""
    *_, leaf, kind = ("", *canonical.split("."))
    return kind == "weight" and leaf in MATRIX_LEAVES


def is_text(canonical: str) -> bool:
    """Whether a tensor is the language model's, not the vision tower's or the projector's."""
    return canonical.startswith("language_model.") or canonical == LM_HEAD


def expected_shapes(config: PaliGemmaConfig) -> Shapes:
    """Canonical name -> shape of every tensor that must be there; `lm_head.weight` only where it is not tied."""
    text, vision = config.text, config.vision
    shapes = vision_shapes(vision)
    shapes["multi_modal_projector.linear.weight"] = (text.hidden_size, vision.hidden_size)
    shapes["multi_modal_projector.linear.bias"] = (text.hidden_size,)
    shapes |= text_shapes(text)
    if not config.tie_word_embeddings:
        shapes[LM_HEAD] = (text.vocab_size, text.hidden_size)
    return shapes


def vision_shapes(config: SiglipConfig) -> Shapes:
    """The vision tower's tensors."""
    E, M, patch = config.hidden_size, config.intermediate_size, config.patch_size
    outputs_inputs = {
        "self_attn.q_proj": (E, E),
        "self_attn.k_proj": (E, E),
        "self_attn.v_proj": (E, E),
        "self_attn.out_proj": (E, E),
        "mlp.fc1": (M, E),
        "mlp.fc2": (E, M),
    }
    at = "vision_tower."
    shapes: Shapes = {
        f"{at}embeddings.patch_embedding.weight": (E, config.num_channels, patch, patch),
        f"{at}embeddings.patch_embedding.bias": (E,),
        f"{at}embeddings.position_embedding.weight": (config.num_image_tokens, E),
    }
    for i in range(config.num_hidden_layers):
        layer = f"{at}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.weight": (E,), f"{layer}{norm}.bias": (E,)}
        for name, (outputs, inputs) in outputs_inputs.items():
            shapes |= {f"{layer}{name}.weight": (outputs, inputs), f"{layer}{name}.bias": (outputs,)}
    return shapes | {f"{at}post_layernorm.weight": (E,), f"{at}post_layernorm.bias": (E,)}


def text_shapes(config: Gemma2Config) -> Shapes:
    """The decoder's tensors; no biases, and norms store w of (1 + w).

    Gemma 1 has two norms a layer, and calls the one before the MLP `post_attention_layernorm`, as Llama does; in
    Gemma 2 that is the norm of what attention adds (Transformers, modeling_gemma.py and modeling_gemma2.py).
    """
    D, F = config.hidden_size, config.intermediate_size
    query_width = config.num_attention_heads * config.head_dim
    key_width = config.num_key_value_heads * config.head_dim
    leaves: Shapes = {
        "input_layernorm": (D,),
        "self_attn.q_proj": (query_width, D),
        "self_attn.k_proj": (key_width, D),
        "self_attn.v_proj": (key_width, D),
        "self_attn.o_proj": (D, query_width),
        "post_attention_layernorm": (D,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    if config.post_norms:
        leaves |= {"pre_feedforward_layernorm": (D,), "post_feedforward_layernorm": (D,)}
    shapes: Shapes = {"language_model.embed_tokens.weight": (config.vocab_size, D)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"language_model.layers.{i}.{leaf}.weight": shape for leaf, shape in leaves.items()}
    return shapes | {"language_model.norm.weight": (D,)}


def assemble(config: PaliGemmaConfig, tensors: Mapping[str, Any]) -> Params:
    """Put checked tensors, under their canonical names, in their places; matrices may be quantised."""

    def pair(path: str) -> tuple[Any, Any]:
        return tensors[f"{path}.weight"], tensors[f"{path}.bias"]

    embed_tokens = tensors["language_model.embed_tokens.weight"]
    return Params(
        vision_tower=SiglipParams(
            patch_embedding=PatchEmbedding(*pair("vision_tower.embeddings.patch_embedding")),
            position_embedding=tensors["vision_tower.embeddings.position_embedding.weight"],
            layers=tuple(
                SiglipLayer(**{leaf: Affine(*pair(path)) for leaf, path in _vision_layer_paths(i).items()})
                for i in range(config.vision.num_hidden_layers)
            ),
            post_layernorm=Affine(*pair("vision_tower.post_layernorm")),
        ),
        multi_modal_projector=Affine(*pair("multi_modal_projector.linear")),
        language_model=Gemma2Params(
            embed_tokens=embed_tokens,
            layers=tuple(
                DecoderLayer(**{leaf: path and tensors[f"{path}.weight"] for leaf, path in paths.items()})
                for paths in (
                    _text_layer_paths(i, config.text.post_norms) for i in range(config.text.num_hidden_layers)
                )
            ),
            norm=tensors["language_model.norm.weight"],
            lm_head=tensors.get(LM_HEAD, embed_tokens),  # a head in the file is used even where the config ties it
        ),
    )


def _vision_layer_paths(layer: int) -> dict[str, str]:
    at = f"vision_tower.encoder.layers.{layer}."
    return {leaf: at + _folder_of(leaf) + leaf for leaf in SiglipLayer._fields}


def _text_layer_paths(layer: int, post_norms: bool) -> dict[str, Any]:
    """Where each of our leaves lies, or None; without post-norms the norm before the MLP is called otherwise."""
    at = f"language_model.layers.{layer}."
    paths: dict[str, Any] = {leaf: at + _folder_of(leaf) + leaf for leaf in DecoderLayer._fields}
    if not post_norms:
        before_mlp = paths["post_attention_layernorm"]
        paths |= {"post_attention_layernorm": None, "post_feedforward_layernorm": None}
        paths["pre_feedforward_layernorm"] = before_mlp
    return paths


def _folder_of(leaf: str) -> str:
    """Where a layer's leaf lies: attention projections, the MLP's matrices, or the layer itself (norms)."""
    if leaf in ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"):
        return "self_attn."
    return "mlp." if leaf in ("gate_proj", "up_proj", "down_proj", "fc1", "fc2") else ""
