"""Mistakes before the model: pixels in another order or resized otherwise, a prompt laid out otherwise."""

import numpy as np

from pg2ref.inputs.image import pixel_values
from pg2ref.parity.bugs.run import Bug, Run


def _blue_first(run: Run) -> Run:
    flipped = tuple(np.ascontiguousarray(pixel_values_CYX[::-1]) for pixel_values_CYX in run.pixel_values)
    return run._replace(pixel_values=flipped)


def _without_antialiasing(run: Run) -> Run:
    if not run.pictures:
        return run
    side = run.model.config.vision.image_size
    return run._replace(pixel_values=tuple(pixel_values(picture, side, "bilinear") for picture in run.pictures))


def _bos_place(run: Run) -> int:
    """<bos> stands right behind the last image token."""
    return len(run.prompt_ids) - run.prompt_ids[::-1].index(run.model.config.image_token_id)


def _without_bos(run: Run) -> Run:
    place = _bos_place(run)
    return run._replace(prompt_ids=run.prompt_ids[:place] + run.prompt_ids[place + 1 :])


def _bos_first(run: Run) -> Run:
    place = _bos_place(run)
    return run._replace(prompt_ids=(run.prompt_ids[place], *_without_bos(run).prompt_ids))


def _without_newline(run: Run) -> Run:
    return run._replace(prompt_ids=run.prompt_ids[:-1])


BUGS = (
    Bug(
        "bgr",
        "The image goes in with blue first, as OpenCV reads it.",
        ("pixels",),
        ("Geekgineer/YOLOs-CPP#122", "pixelite1201/CameraHMR#20"),
        _blue_first,
    ),
    Bug(
        "no-antialias",
        "The image is shrunk by bilinear sampling without a widening filter.",
        ("pixels",),
        ("huggingface/transformers#27601", "sayakpaul/cmmd-pytorch#4"),
        _without_antialiasing,
    ),
    Bug(
        "missing-bos",
        "No <bos> between image and prompt: PaliGemma 2's tokenizer adds none by itself.",
        ("prompt", "merge"),
        ("vllm-project/vllm#13584",),
        _without_bos,
    ),
    Bug(
        "bos-first",
        "<bos> stands before the image tokens, not behind them.",
        ("prompt", "merge"),
        ("vllm-project/vllm#14015",),
        _bos_first,
    ),
    Bug(
        "missing-newline",
        "The newline that ends the prompt is left out.",
        ("prompt", "merge"),
        ("vllm-project/vllm#13584", "vllm-project/vllm#5189"),
        _without_newline,
    ),
)
