"""adapter_config.json, as the peft package writes it: which matrices a LoRA adapts, of what rank, how strongly.

As with config.json, a field that would change the numbers in a way that is not computed here is an error. peft gains
fields with every release, so one that is not known here counts only where it is switched on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pg2ref.config import read_json_object
from pg2ref.errors import ConfigError, brief

CONFIG_NAME = "adapter_config.json"
LARGEST_RANK = 1 << 16
LONGEST_PATTERN = 4096
# Fields with few admissible values (peft 0.21.2, tuners/lora/config.py). The initial values of some methods are taken
# from the base, which they change too: the base that is on disk is not theirs.
PLAIN_INITIAL_VALUES = (True, False, "gaussian", "orthogonal", "eva", None)
FIXED: Mapping[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none", "all", "lora_only", None),  # the biases themselves lie in the weight file
    "init_lora_weights": PLAIN_INITIAL_VALUES,
    "kasa_config": (None,),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
}
# Fields that change no number: of training, of how peft holds the weights, or of which modules got any, which the
# weight file shows. fan_in_fan_out is for another kind of layer, and peft itself ignores it for those of this model.
BOOKKEEPING = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config eva_config exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_config megatron_core
    peft_version qalora_group_size revision runtime_config task_type velora_config
    """.split()
)
COMPUTED = frozenset(
    """
    alpha_pattern ensure_weight_tying lora_alpha modules_to_save peft_type r rank_pattern target_modules use_dora
    use_rslora
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What is computed with. Patterns and targets speak of modules by the paths that the adapter's own file uses."""

    base_name: str  # of the checkpoint it was trained on, for messages
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    target_modules: str | tuple[str, ...]
    saved_modules: tuple[str, ...]
    ties_weights: bool

    def rank_of(self, path: str) -> int:
        """The rank of one module: that of the first pattern that fits, else `r`."""
        return next((rank for key, rank in self.rank_pattern.items() if fits_pattern(key, path)), self.rank)

    def scale_of(self, path: str) -> float:
        """The factor on a module's low-rank product: alpha / r, or alpha / sqrt(r) (arXiv:2312.03732)."""
        alpha = next((value for key, value in self.alpha_pattern.items() if fits_pattern(key, path)), self.alpha)
        rank = self.rank_of(path)
        return float(alpha / rank**0.5 if self.use_rslora else alpha / rank)

    def is_target(self, path: str) -> bool:
        """Whether peft adapts the module: by a regular expression for the whole path, or a list of its last names."""
        if isinstance(self.target_modules, str):
            return self.target_modules == "all-linear" or re.fullmatch(self.target_modules, path) is not None
        return any(path == target or path.endswith(f".{target}") for target in self.target_modules)

    def is_saved(self, path: str) -> bool:
        """Whether `modules_to_save` names the module, or one that it lies in."""
        return any(re.match(saved_pattern(name), path) for name in self.saved_modules)


def fits_pattern(key: str, path: str) -> bool:
    """Whether a key of rank_pattern or alpha_pattern is for a module."""
    return re.match(key_pattern(key), path) is not None


def key_pattern(key: str) -> str:
    """What a key of rank_pattern or alpha_pattern stands for (peft utils/other.py, get_pattern_key)."""
    return rf"(.*\.)?({key})$"


def saved_pattern(name: str) -> str:
    """What a name of modules_to_save stands for: the module, and all that lie in it."""
    return rf"(^|.*\.){name}($|\..*)"


def read_lora_config(folder: Path) -> LoraConfig:
    """Read and check a folder's adapter_config.json.

    Raises:
        ConfigError: it is missing, of another method than LoRA, or asks for what is not computed here.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise ConfigError(
            f"{folder}: expected an adapter, a folder with {CONFIG_NAME}, found no such file; give the folder that "
            "peft's save_pretrained wrote"
        )
    fields = read_json_object(folder / CONFIG_NAME)
    if fields.get("peft_type") != "LORA":
        raise ConfigError(
            f"{CONFIG_NAME}: peft_type is {brief(fields.get('peft_type'))}, pg2ref computes 'LORA' only; merge the "
            "adapter with peft (merge_and_unload) and give the merged checkpoint"
        )
    _check_fields(fields)
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        _check_regex("target_modules", targets, targets)
    saved = _names(fields, "modules_to_save")
    for name in saved:
        _check_regex("modules_to_save", name, saved_pattern(name))
    return LoraConfig(
        base_name=str(fields.get("base_model_name_or_path") or "a checkpoint it does not name"),
        rank=_number(fields, "r", 8, whole=True),
        alpha=_number(fields, "lora_alpha", 8),
        rank_pattern=_pattern(fields, "rank_pattern", whole=True),
        alpha_pattern=_pattern(fields, "alpha_pattern"),
        use_rslora=_flag(fields, "use_rslora"),
        use_dora=_flag(fields, "use_dora"),
        target_modules=targets if isinstance(targets, str) else _names(fields, "target_modules"),
        saved_modules=saved,
        ties_weights=_flag(fields, "ensure_weight_tying"),
    )


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in FIXED:
            is_known = any(type(value) is type(one) and value == one for one in FIXED[name])
        else:
            is_known = name in COMPUTED or name in BOOKKEEPING or not value
        if not is_known:
            raise ConfigError(
                f"{CONFIG_NAME}: {brief(name)} is {brief(value)}, which pg2ref does not compute; merge the adapter "
                "with peft (merge_and_unload) and give the merged checkpoint"
            )


def _number(fields: Mapping[str, Any], name: str, default: int, *, whole: bool = False) -> Any:
    value = fields.get(name, default)
    _check_number(name, value, whole)
    return value


def _check_number(name: str, value: Any, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    most = LARGEST_RANK if whole else 1e9
    lowest = 1 if whole else -1e9
    if not isinstance(value, kinds) or isinstance(value, bool) or not lowest <= value <= most:
        wanted = f"a whole number from 1 to {LARGEST_RANK}" if whole else "a number"
        raise ConfigError(f"{CONFIG_NAME}: {name} is {brief(value)}, expected {wanted}")


def _pattern(fields: Mapping[str, Any], name: str, *, whole: bool = False) -> dict[str, Any]:
    table = fields.get(name) or {}
    if not isinstance(table, dict):
        raise ConfigError(f"{CONFIG_NAME}: {name} is {brief(table)}, expected an object, module name to number")
    for key, value in table.items():
        _check_regex(name, key, key_pattern(key))
        _check_number(f"{name}, {brief(key)}", value, whole)
    return table


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name) or False
    if not isinstance(value, bool):
        raise ConfigError(f"{CONFIG_NAME}: {name} is {brief(value)}, expected true or false")
    return value


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{CONFIG_NAME}: {name} is {brief(value)}, expected a list of module names")
    return tuple(value)


def _check_regex(name: str, written: str, pattern: str) -> None:
    """Refuse what makes no regular expression of the pattern that it becomes part of."""
    try:
        if len(written) > LONGEST_PATTERN:
            raise re.error(f"{len(written)} characters are too many")
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{CONFIG_NAME}: {name} has {brief(written)}, no regular expression ({error})") from None
