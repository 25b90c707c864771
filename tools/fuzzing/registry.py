"""All targets by name. A reader of a new kind of file adds its module's TARGETS here."""

from collections.abc import Mapping

from fuzzing import (
    adapter_inputs,
    answer_inputs,
    big_vision_inputs,
    config_inputs,
    image_inputs,
    npz_inputs,
    row_inputs,
    safetensors_inputs,
    trace_inputs,
)
from fuzzing.target import Target

MODULES = (
    safetensors_inputs,
    config_inputs,
    image_inputs,
    answer_inputs,
    npz_inputs,
    big_vision_inputs,
    row_inputs,
    adapter_inputs,
    trace_inputs,
)
TARGETS: Mapping[str, Target] = {target.name: target for module in MODULES for target in module.TARGETS}
