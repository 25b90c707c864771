"""Step 1 of 9: config.json -> PaliGemmaConfig. Next: inputs/image.py.

The dataclasses have no defaults: any default is somebody else's model. The reader knows what Transformers fills in
for fields that released files leave out (they hold only what differs from its classes), takes both spellings of a
renamed field, and refuses a field it does not know, because an unread field that changes numbers is how wrong
models run without complaint.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pg2ref.errors import ConfigError, brief

LayerType: TypeAlias = Literal["sliding_attention", "full_attention"]
LAYER_TYPES: tuple[LayerType, LayerType] = ("sliding_attention", "full_attention")


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """The image encoder, SigLIP So400m/14 in every published size (arXiv:2303.15343)."""

    image_size: int
    patch_size: int
    num_channels: int
    hidden_size: int  # E
    intermediate_size: int  # M
    num_hidden_layers: int
    num_attention_heads: int  # N
    layer_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head, H."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_image_tokens(self) -> int:
        """Patches in one image, I; `num_positions` and `num_image_tokens` in released files are not reliable."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class Gemma2Config:
    """The text decoder, Gemma 2 (arXiv:2408.00118)."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # N
    num_key_value_heads: int  # K
    head_dim: int  # H
    query_pre_attn_scalar: float  # 256 for 2B and 9B, 144 for 27B: not always head_dim
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None
    sliding_window: int | None  # keys a query of a sliding layer may read, itself included
    layer_types: tuple[LayerType, ...]
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int

    @property
    def query_scale(self) -> float:
        """Factor on query-key products before the soft cap."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def embedding_scale(self) -> float:
        """Factor on text embeddings; image embeddings are not scaled."""
        return math.sqrt(self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class PaliGemmaConfig:
    """The whole model: SigLIP, a linear projector and Gemma 2 (arXiv:2412.03555)."""

    vision: SiglipConfig
    text: Gemma2Config
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool


# What Transformers 5.23 fills in (models/gemma2/configuration_gemma2.py, models/siglip/configuration_siglip.py).
GEMMA2_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
}
SIGLIP_DEFAULTS: Mapping[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
}
NULLABLE = {"attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}

# Fields with one admissible value: any other would change the numbers in a way that is not implemented here.
FIXED_TEXT: Mapping[str, Any] = {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "rope_scaling": None,
}
FIXED_VISION: Mapping[str, Any] = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
FIXED_TOP: Mapping[str, Any] = {"model_type": "paligemma"}

# Fields that change no number of a forward pass, or that Transformers 5.23 reads nowhere in this model.
BOOKKEEPING = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path _vocab_size add_cross_attention architectures
    attention_dropout auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_act id2label ignore_index initializer_range is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_image_tokens num_positions num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix problem_type projection_dim projector_hidden_act pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_bidirectional_attention use_cache vision_use_head
    """.split()
)
TOP_FIELDS = BOOKKEEPING | {
    "text_config",
    "vision_config",
    "image_token_index",
    "image_token_id",
    "hidden_size",  # 2048 in re-saved files and read by nobody: the text width is text_config's
    "num_hidden_layers",
    "vocab_size",
}
LARGEST_FIELD = 1 << 24
MOST_FILE_BYTES = 1 << 24  # released ones have some thousands
MOST_LAYERS = 512
MOST_IMAGE_TOKENS = 1 << 16  # 16 times those of 896 px


def read_config(path: Path) -> PaliGemmaConfig:
    """Read a checkpoint's config.json (and its generation_config.json, for the end-of-text ids).

    Raises:
        ConfigError: a file is missing or no JSON object, a field is unknown, missing, or not computable.
    """
    top = read_json_object(path)
    generation_path = path.with_name("generation_config.json")
    generation = read_json_object(generation_path) if generation_path.is_file() else {}
    return parse_config(top, generation, where=path.name)


def parse_config(
    top: Mapping[str, Any], generation: Mapping[str, Any] = {}, *, where: str = "config.json"
) -> PaliGemmaConfig:
    """The same from the parsed JSON of config.json and generation_config.json."""
    if _subtable(top, "text_config", where).get("model_type", "gemma2") == "gemma":
        raise ConfigError(
            f"{where}: the text decoder is Gemma 1, so this is PaliGemma 1; pg2ref runs PaliGemma 2: "
            "use a google/paligemma2-* checkpoint"
        )
    _check_fields(top, TOP_FIELDS, FIXED_TOP, where)
    vision = _vision(_subtable(top, "vision_config", where), f"{where}: vision_config")
    text = _text(_subtable(top, "text_config", where), f"{where}: text_config")
    projection_dim = top.get("projection_dim", text.hidden_size)
    if projection_dim != text.hidden_size:
        raise ConfigError(
            f"{where}: projection_dim is {brief(projection_dim)}, expected text_config.hidden_size = "
            f"{text.hidden_size}: the projector must end at the decoder's width"
        )
    image_token_id = top.get("image_token_id", top.get("image_token_index"))
    if image_token_id is None:  # Transformers' default, 256000, is PaliGemma 2's <loc0000>
        raise ConfigError(f"{where}: image_token_index is missing; in the released PaliGemma 2 files it is 257152")
    if top.get("image_token_index", image_token_id) != image_token_id:
        raise ConfigError(f"{where}: image_token_id and image_token_index differ; they are two names of one number")
    sources = (generation, top, _subtable(top, "text_config", where))
    eos = next((table["eos_token_id"] for table in sources if table.get("eos_token_id") is not None), 1)
    eos_token_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    for name, value in [("image_token_index", image_token_id), *(("eos_token_id", i) for i in eos_token_ids)]:
        _check_number(name, value, int, where, zero=True)
    if not eos_token_ids:
        raise ConfigError(f"{where}: eos_token_id is an empty list, expected at least one id that ends an answer")
    if beyond := [token_id for token_id in eos_token_ids if token_id >= text.vocab_size]:
        raise ConfigError(
            f"{where}: eos_token_id is {beyond[0]}, expected less than vocab_size = {text.vocab_size}: an answer "
            "could never end; take all JSON files from the same checkpoint"
        )
    tied = top.get("tie_word_embeddings", True)
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        image_token_id=image_token_id,
        eos_token_ids=eos_token_ids,
        tie_word_embeddings=_check_number("tie_word_embeddings", tied, bool, where),
    )


def _vision(fields: Mapping[str, Any], where: str) -> SiglipConfig:
    _check_fields(fields, BOOKKEEPING | set(SIGLIP_DEFAULTS), FIXED_VISION, where)
    vision = SiglipConfig(**_fill(fields, SIGLIP_DEFAULTS, where))
    _check_divides("image_size", vision.image_size, "patch_size", vision.patch_size, where)
    if vision.num_image_tokens > MOST_IMAGE_TOKENS:
        most = math.isqrt(MOST_IMAGE_TOKENS) * vision.patch_size
        raise ConfigError(f"{where}: image_size is {vision.image_size}, expected at most {most}")
    _check_divides("hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads, where)
    return vision


def _text(fields: Mapping[str, Any], where: str) -> Gemma2Config:
    known = BOOKKEEPING | set(GEMMA2_DEFAULTS) | {"layer_types", "rope_parameters"}
    _check_fields(fields, known, FIXED_TEXT, where)
    rope = fields.get("rope_parameters")
    if rope is not None:
        rope = _subtable(fields, "rope_parameters", where)
        _check_fields(rope, {"rope_theta"}, {"rope_type": "default"}, f"{where}: rope_parameters")
        thetas = [table["rope_theta"] for table in (rope, fields) if table.get("rope_theta") is not None]
        if thetas[1:] and thetas[0] != thetas[1]:
            raise ConfigError(
                f"{where}: rope_theta is {brief(thetas[1])}, but {brief(thetas[0])} in rope_parameters; keep one"
            )
        fields = {**fields, "rope_theta": thetas[0] if thetas else GEMMA2_DEFAULTS["rope_theta"]}
    values = _fill(fields, GEMMA2_DEFAULTS, where)
    layers = values["num_hidden_layers"]
    layer_types = fields.get("layer_types")
    if layer_types is None:
        layer_types = [LAYER_TYPES[layer % 2] for layer in range(layers)]
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != layers
        or any(t not in LAYER_TYPES for t in layer_types)
    ):
        raise ConfigError(f"{where}: layer_types must hold {layers} entries, each one of {', '.join(LAYER_TYPES)}")
    text = Gemma2Config(layer_types=tuple(layer_types), **values)
    _check_divides(
        "num_attention_heads",
        text.num_attention_heads,
        "num_key_value_heads",
        text.num_key_value_heads,
        where,
    )
    _check_divides("head_dim", text.head_dim, "2 (RoPE turns pairs)", 2, where)
    return text


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; ConfigError where there is none."""
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ConfigError(f"{path.name}: {path.stat().st_size:,} bytes are too many; download the file again")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.name} is missing in {path.parent}: download the whole repository") from None
    except OSError as error:
        raise ConfigError(f"{path.name}: expected a readable file, got {error.strerror}; check its rights") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.name}: expected a JSON object, got no valid JSON ({error}); download the file again"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name}: expected a JSON object, got a {type(content).__name__}; download the file again"
        )
    return content


def _subtable(fields: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = fields.get(name)
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {name} is missing or no object; this is not a PaliGemma 2 configuration")
    return table


def _check_fields(
    fields: Mapping[str, Any], known: set[str] | frozenset[str], fixed: Mapping[str, Any], where: str
) -> None:
    unknown = sorted(set(fields) - known - set(fixed))
    if unknown:
        shown = ", ".join(name if name.isidentifier() else brief(name) for name in unknown[:5])
        raise ConfigError(
            f"{where}: unknown field {shown}: pg2ref cannot know whether it changes the numbers; "
            "remove it if it does not"
        )
    for name, expected in fixed.items():
        if name in fields and fields[name] != expected:
            raise ConfigError(f"{where}: {name} is {brief(fields[name])}, pg2ref computes {expected!r} only")


def _fill(fields: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {name: fields.get(name, default) for name, default in defaults.items()}
    for name, value in values.items():
        if value is None and name in NULLABLE:
            continue
        default = defaults[name]
        kind = int if isinstance(default, int) and name != "query_pre_attn_scalar" else float
        values[name] = kind(_check_number(name, value, kind, where))  # JSON may say 10000 for 10000.0
    if values["num_hidden_layers"] > MOST_LAYERS:
        raise ConfigError(f"{where}: num_hidden_layers must be at most {MOST_LAYERS}")
    return values


def _check_number(name: str, value: Any, kind: type, where: str, *, zero: bool = False) -> Any:
    """A bool, or an int or float above zero (or from zero, where asked); ints are floats, bools are not numbers."""
    if kind is bool:
        good = isinstance(value, bool)
        expected = "true or false"
    else:
        numeric = (int,) if kind is int else (int, float)
        good = isinstance(value, numeric) and not isinstance(value, bool)
        most = sys.float_info.max if name == "rope_theta" else LARGEST_FIELD
        good = good and (value >= 0 if zero else value > 0) and value <= most
        expected = f"{'a whole number' if kind is int else 'a number'} {'from' if zero else 'above'} 0, up to {most}"
    if not good:
        raise ConfigError(f"{where}: {name} is {brief(value)}, expected {expected}")
    return value


def _check_divides(name: str, value: int, by_name: str, by: int, where: str) -> None:
    if value % by:
        raise ConfigError(f"{where}: {name} is {value}, expected a multiple of {by_name} ({by})")
