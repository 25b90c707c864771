"""How a prompt is laid out, by hand-written ids, and both modules against a live Transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_model
from hypothesis import given, settings
from hypothesis import strategies as st

from pg2ref.errors import PromptError
from pg2ref.inputs.prompt import prompt_ids
from pg2ref.inputs.tokenizer import Tokenizer

VOCAB_SIZE_TEXT = 1200
IMAGE_ID = VOCAB_SIZE_TEXT + 1152
NUM_IMAGE_TOKENS = 4
IMAGE_SIZE_PX = 28

LAYOUTS = [  # prompt, images, what follows or surrounds the image tokens (None: one image)
    ("", 1, [None, 2, 108]),
    ("detect cat", 1, [None, 2, 545, 820, 108]),
    ("detect cat\n", 1, [None, 2, 545, 820, 109]),  # the two newlines are one token
    ("detect cat ", 1, [None, 2, 545, 820, 1163, 108]),
    (" cat", 1, [None, 2, 820, 108]),
    ("detect cat", 3, [None, None, None, 2, 545, 820, 108]),
    ("<image>detect cat", 1, [None, 2, 545, 820, 108]),
    ("<image> cat", 1, [None, 2, 820, 108]),  # the space stays
    ("detect<image> cat<image>\n", 2, [545, None, 820, None, 2, 109]),
    ("detect<image>", 1, [545, None, 2, 108]),
    ("<bos>detect", 1, [None, 2, 2, 545, 108]),  # a typed mark is not escaped
    ("<loc0001><seg003>", 1, [None, 2, 1201, 2227, 108]),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processor")
    tokenizer_model.write_tokenizer_files(path, VOCAB_SIZE_TEXT)
    preprocessor = {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": NUM_IMAGE_TOKENS,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    return path


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, IMAGE_ID)


@pytest.fixture(scope="session")
def processor(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return transformers.AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(("prompt", "num_images", "layout"), LAYOUTS)
@pytest.mark.parametrize("num_image_tokens", [1, 4, 256])
def test_layout(
    tokenizer: Tokenizer, prompt: str, num_images: int, layout: list[int | None], num_image_tokens: int
) -> None:
    expected: list[int] = []
    for token_id in layout:
        expected += [IMAGE_ID] * num_image_tokens if token_id is None else [token_id]
    ids = prompt_ids(tokenizer, prompt, num_images=num_images, num_image_tokens=num_image_tokens)
    assert ids == expected


@settings(deadline=None, derandomize=True)
@given(prompt=st.text(max_size=20), num_images=st.integers(1, 3))
def test_ids_outside_the_images_do_not_depend_on_them(tokenizer: Tokenizer, prompt: str, num_images: int) -> None:
    ids = prompt_ids(tokenizer, prompt, num_images=num_images, num_image_tokens=5)
    assert ids.count(IMAGE_ID) == 5 * num_images
    assert [i for i in ids if i != IMAGE_ID] == [2, *tokenizer.tokenize(prompt + "\n")]


@pytest.mark.parametrize(
    ("prompt", "num_images"), [("cat", 0), ("cat", -1), ("<image>cat", 0), ("<image>cat", 2), ("<image><image>", 1)]
)
def test_counts_that_differ(tokenizer: Tokenizer, prompt: str, num_images: int) -> None:
    with pytest.raises(PromptError, match="expected 1 or more" if num_images < 1 else "one mark for each") as caught:
        prompt_ids(tokenizer, prompt, num_images=num_images, num_image_tokens=4)
    assert caught.value.exit_code == 4


def test_lone_surrogate_in_a_prompt(tokenizer: Tokenizer) -> None:
    with pytest.raises(PromptError, match="surrogate"):
        prompt_ids(tokenizer, "cat \ud83d", num_images=1, num_image_tokens=4)


ATOMS = """<loc0001> <loc1024> <seg127> <bos> <eos> <pad> <unk> <mask> <image> <table> </b> <unused5>
<unused_000003> <0x41> <start_of_turn> < 0 12 the cat eee oooo tttt cap tion Straße кошка 日 😀 é ▁
▁▁ ▅ \u00a0 \u200b \u3000 ﬁ""".split()
ATOMS += [" ", "  ", " cat", " " * 40, "\n", "\n\n", "\n" * 40, "\t", "\r", "\0", "e\u0301", "\ufeff", "\ufffd"]


@pytest.mark.parity
@settings(deadline=None, derandomize=True)
@given(text=st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=12).map("".join))
def test_ids_equal_transformers(tokenizer: Tokenizer, processor: Any, text: str) -> None:
    assert tokenizer.tokenize(text) == processor.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parity
def test_runs_of_spaces_equal_transformers(tokenizer: Tokenizer, processor: Any) -> None:
    for length in range(1, 150):
        text = "cat" + " " * length + "the"
        assert tokenizer.tokenize(text) == processor.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parity
@settings(deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, IMAGE_ID + 20) | st.integers(217, 472) | st.integers(0, 140)))
def test_text_equals_transformers(tokenizer: Tokenizer, processor: Any, ids: list[int]) -> None:
    decoded = processor.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.detokenize(ids) == decoded


@pytest.mark.parity
@pytest.mark.parametrize(("prompt", "num_images", "layout"), LAYOUTS)
def test_processor_ids_equal_transformers(
    tokenizer: Tokenizer, processor: Any, prompt: str, num_images: int, layout: list[int | None]
) -> None:
    image_YXC = np.zeros((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
    inputs = processor(images=[[image_YXC] * num_images], text=[prompt])
    ids = prompt_ids(tokenizer, prompt, num_images=num_images, num_image_tokens=NUM_IMAGE_TOKENS)
    assert ids == inputs["input_ids"][0]
    assert len(layout) + layout.count(None) * (NUM_IMAGE_TOKENS - 1) == len(ids)
