"""The public face: `load()` and `Model`. What it does is done elsewhere; here it is put together."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from pg2ref.adapters.adapter import Adapter, read_adapter
from pg2ref.adapters.apply import with_adapters
from pg2ref.answer import Answer, Prepared, warnings_about
from pg2ref.checkpoint.loader import Checkpoint, check_vocabulary, not_finite_tensors
from pg2ref.checkpoint.open import open_checkpoint
from pg2ref.checkpoint.vae_npz import VAE_NAME, read_mask_decoder
from pg2ref.demo import builtin
from pg2ref.demo.familiarity import Familiarity, read_familiarity
from pg2ref.errors import CheckpointError, UsageError
from pg2ref.generation.options import AnswerOptions
from pg2ref.generation.score import score
from pg2ref.inputs.image import Frame, ImageSource, Picture, file_digest, pixel_values, read_image
from pg2ref.inputs.prompt import prompt_ids
from pg2ref.inputs.tokenizer import Tokenizer
from pg2ref.model.backend import choose_precision, operations
from pg2ref.model.paligemma import PaliGemma, encode_images
from pg2ref.model.vqvae import MaskDecoder
from pg2ref.outputs.result import InputImage, Result, versions
from pg2ref.outputs.scores import Continuation, ScoredToken, Scores
from pg2ref.policy import LOC_SCALES, PRESETS, RESIZE_POLICIES, WINDOW_POLICIES, Policy
from pg2ref.recording.run_trace import RunTrace
from pg2ref.trace import Guard, NotFiniteError, Tap, no_tap

Computed = TypeVar("Computed")


def load(
    name: str | Path | None = None,
    *,
    precision: str | None = None,
    backend: str | None = None,
    preset: str = "transformers",
    resize: str | None = None,
    window: str | None = None,
    loc_scale: int | None = None,
    vae: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    tokenizer_file: str | Path | None = None,
) -> "Model":
    """Open a checkpoint: a folder, or the name of one in the local Hugging Face cache. Nothing is downloaded.

    Args:
        name: a folder with config.json, `org/name[@revision]`, or an .npz of big_vision; by default the built-in model
            for synthetic scenes.
        precision: `f32` activations and sums; `bf16`, the same but rounded before each linear layer; `f64`, the truth
            that judges both; `int8` and `int4`, integer products, for checkpoints that are quantised so. By default
            what the kernels are quickest with: the type of quantised weights, `bf16` where the processor multiplies
            bf16 in one instruction and the weights are bf16, else `f32`.
        backend: `numba`, the kernels, compiled on first use, or `numpy`, the reference: the default for `f64`, and for
            the built-in model, which answers before kernels would be compiled.
        preset: whose choice to follow where libraries differ: transformers, big_vision, keras, gemma_cpp.
        resize: one choice apart from the preset's; see inputs/image.py.
        window: likewise; see model/masks.py.
        loc_scale: likewise, 1023 or 1024; see outputs/detection.py.
        vae: the mask decoder, big_vision's vae-oid.npz; by default the file of that name in the model's folder, if any.
        adapters: LoRA folders as peft writes them, applied in this order; see adapters/apply.py.
        tokenizer_file: a tokenizer.model or tokenizer.json; by default that in the model's folder.

    Raises:
        ModelNotAvailableError: there is nothing under that name.
        CheckpointError: the files contradict each other.
        UsageError: an option has no such value, or the weights cannot be computed with so.
    """
    started = time.perf_counter()
    if isinstance(adapters, (str, Path)):
        raise UsageError(f"adapters is {str(adapters)!r}, expected a list of folders")
    operations(backend or "numpy", precision or "f32")  # refuses names before anything is read
    policy = _policy(preset, resize, window, loc_scale)
    checkpoint = open_checkpoint(builtin.NAME if name is None else name)
    folder = checkpoint.folder
    is_builtin = builtin.is_builtin(folder)
    if backend is None:
        backend = "numpy" if precision == "f64" or is_builtin else "numba"
    vae_file = Path(vae) if vae is not None else folder / VAE_NAME
    mask_decoder = read_mask_decoder(vae_file) if vae is not None or vae_file.exists() else None
    precision = choose_precision(backend, precision, checkpoint.weight_type)
    read = [read_adapter(Path(adapter), checkpoint.config) for adapter in adapters]
    if read:
        checkpoint = with_adapters(checkpoint, read, in_bf16=precision not in ("f32", "f64"))
    tokenizer = Tokenizer.load(
        folder if tokenizer_file is None else Path(tokenizer_file), checkpoint.config.image_token_id
    )
    check_vocabulary(checkpoint, tokenizer.vocab_size)
    dtype = np.dtype(np.float64 if precision == "f64" else np.float32)
    numbers = PaliGemma(
        checkpoint.params,
        checkpoint.config,
        dtype,
        operations(backend, precision),
        policy.window,
        cache_dtype=dtype if precision in ("f32", "f64") else np.dtype(np.uint16),
    )
    described = {
        "id": builtin.NAME if is_builtin else str(name),
        "revision": folder.name if folder.parent.name == "snapshots" else None,
        "dtype": precision,
        "backend": backend,
        "weights": checkpoint.weight_type,
        "builtin": is_builtin,
        "adapters": [str(adapter) for adapter in adapters],
    }
    familiarity = read_familiarity(folder) if is_builtin else None
    seconds = time.perf_counter() - started
    return Model(checkpoint, tokenizer, numbers, policy, described, seconds, mask_decoder, familiarity, read)


class Model:
    """A checkpoint that answers. Made by `load()`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        numbers: PaliGemma,
        policy: Policy,
        described: dict[str, Any],
        load_seconds: float,
        mask_decoder: MaskDecoder | None = None,
        familiarity: Familiarity | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer = tokenizer
        self.numbers = numbers
        self.policy = policy
        self.described = described
        self.load_seconds = load_seconds
        self.mask_decoder = mask_decoder
        self.familiarity = familiarity
        self.adapters = adapters

    def generate(self, images: ImageSource | Sequence[ImageSource], prompt: str, **options: Any) -> Result:
        """Answer a prompt about one image or several; options as for `stream`."""
        answer = self.stream(images, prompt, **options)
        for _ in answer:
            pass
        return answer.result()

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str,
        *,
        tap: Tap = no_tap,
        **options: Any,
    ) -> Answer:
        """The same token by token: iterate over the answer, then ask it for its `result()`.

        Args:
            images: a path, a binary file object, a PIL image, a uint8 array or a frame of a video (inputs/video.py),
                or a list of them.
            prompt: the task, `caption en` say, without a newline at its end.
            tap: listens to every stage of every step (trace.py); `trace` records those of reading the prompt.
            options: `max_new_tokens`, `temperature` and the others of AnswerOptions (generation/options.py).

        Raises:
            UsageError: options that make no sense.
            InputError: an image cannot be read, or the prompt and the images do not fit together.
        """
        checked = AnswerOptions(**options)  # before images are read
        return Answer(self, self.prepare(images, prompt), checked, tap)

    def score(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str,
        continuations: Sequence[str],
        *,
        with_end: bool = True,
        tap: Tap = no_tap,
    ) -> Scores:
        """The log-probabilities of given answers: to rank them, or for their perplexity.

        Args:
            images: as for `stream`, and so is `prompt`.
            prompt: what is answered.
            continuations: the answers, each tokenized by itself, as Transformers' processor does with a `suffix`.
            with_end: the end of the text counts as a token of each, as in training; without it these are
                probabilities of beginnings.
            tap: listens to every stage.

        Raises:
            UsageError: no continuation, or one without tokens.
            InputError: an image cannot be read, or a text is none.
        """
        guard, tokenizer = Guard(tap), self.tokenizer
        end = [tokenizer.eos_id] if with_end else []
        ids = [tokenizer.tokenize(text) + end for text in continuations]
        prepared = self.prepare(images, prompt)

        def run() -> list[list[float]]:
            embeddings_ID = encode_images(self.numbers, prepared.pixel_values, tap=guard)
            return score(self.numbers, embeddings_ID, prepared.prompt_ids, ids, tap=guard)

        return Scores(
            **self.about(prepared),
            continuations=tuple(
                Continuation(text, tuple(map(ScoredToken, tokens, map(tokenizer.piece, tokens), logprobs)))
                for text, tokens, logprobs in zip(continuations, ids, self.compute(run), strict=True)
            ),
            warnings=warnings_about(self, prepared, max(map(len, ids))),
        )

    def about(self, prepared: Prepared) -> dict[str, Any]:
        """What every outcome says: the model, what was asked, the choices, the versions."""
        return {
            "model": self.described,
            "images": prepared.images,
            "prompt": prepared.prompt,
            "prompt_ids": tuple(prepared.prompt_ids),
            "num_image_tokens": prepared.prompt_ids.count(self.tokenizer.image_token_id),
            "policy": self.policy._asdict(),
            "versions": versions(),
        }

    def trace(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str,
        *,
        points: Callable[[str], bool] = lambda stage: True,
        steps: int = 0,
    ) -> RunTrace:
        """Record every stage of reading images and prompt, or those whose name `points` chooses, in memory.

        `steps` more tokens are recorded too, the best each time, or as many as the answer has. `trace.stages` has the
        arrays, `trace.save` writes them; recording/record.py writes what memory cannot hold. Attention weights are the
        large ones: at 896 px 1 GB a vision layer.
        """
        trace = RunTrace(points)
        answer = self.stream(images, prompt, max_new_tokens=steps + 1, tap=trace)
        for _ in answer:
            pass
        trace.run = answer.run_facts()
        return trace

    def compute(self, computation: Callable[[], Computed]) -> Computed:
        """Run a piece of a forward pass; numbers that are not finite become an error that names the tensor."""
        try:
            with np.errstate(all="ignore"):  # the guard looks at what comes out
                return computation()
        except NotFiniteError as error:
            name = next(iter(not_finite_tensors(self.checkpoint.tensors)), None)
            if name is None:
                raise
            raise CheckpointError(
                f"{name} holds NaN or infinity, so {error.stage} does: download the checkpoint again "
                "(`pg2ref inspect --verify` lists every such tensor)"
            ) from None

    def prepare(self, images: ImageSource | Sequence[ImageSource], prompt: str) -> Prepared:
        """Read and resize the images and lay out the prompt; no arithmetic of the model yet."""
        if not isinstance(prompt, str):
            raise UsageError(f"the prompt must be a string, got {type(prompt).__name__}")
        sources = list(images) if isinstance(images, (list, tuple)) else [cast(ImageSource, images)]
        opened = [read_image(source) for source in sources]
        vision = self.config.vision
        return Prepared(
            images=tuple(_input_image(*pair) for pair in zip(sources, opened, strict=True)),
            pixel_values=[pixel_values(image, vision.image_size, self.policy.resize) for image in opened],
            prompt=prompt,
            prompt_ids=prompt_ids(
                self.tokenizer, prompt, num_images=len(opened), num_image_tokens=vision.num_image_tokens
            ),
            picture=opened[0],
        )


def _input_image(source: ImageSource, picture: Picture) -> InputImage:
    if isinstance(source, Frame):
        return InputImage(source.path, source.sha256, picture.size, source.index)
    if not isinstance(source, (str, os.PathLike)):
        return InputImage(None, None, picture.size)
    is_file = os.path.isfile(source)  # a pipe has been read already
    return InputImage(os.fspath(source), file_digest(source) if is_file else None, picture.size)


def _policy(preset: str, resize: str | None, window: str | None, loc_scale: int | None) -> Policy:
    """A preset's choices, some of them replaced."""
    _check_choice("preset", preset, PRESETS)
    policy = PRESETS[preset]
    policy = Policy(resize or policy.resize, window or policy.window, loc_scale or policy.loc_scale)
    _check_choice("resize", policy.resize, RESIZE_POLICIES)
    _check_choice("window", policy.window, WINDOW_POLICIES)
    _check_choice("loc_scale", policy.loc_scale, LOC_SCALES)
    return policy


def _check_choice(name: str, value: str | int, choices: Any) -> None:
    if value not in choices:
        raise UsageError(f"{name} {value!r} is not one of {', '.join(map(str, choices))}")
