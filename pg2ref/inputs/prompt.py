"""Step 3 of 9: a prompt and its images become the token ids of the prefix.

    <image> * I for each image, <bos>, the prompt, a newline   ->  prompt_ids

The image tokens only hold the places that the image embeddings take later. The newline ends the prefix: the answer
starts behind it. Nothing is escaped and nothing stripped (Transformers processing_paligemma.py). Next: model/siglip.py.
"""

from pg2ref.errors import PromptError
from pg2ref.inputs.tokenizer import Tokenizer, check_unicode

IMAGE = "<image>"


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, num_images: int, num_image_tokens: int) -> list[int]:
    """The prefix as ids: each image's `num_image_tokens` placeholders, `<bos>`, the prompt, a newline.

    A prompt may place the images itself with `<image>`, one for each; `<bos>` then follows the last of them and text
    before it stays in front. Otherwise all images come first. A newline that ends the prompt melts with the one
    added here into one token.

    Raises PromptError without an image, and when the prompt's `<image>` marks and the images differ in number.
    Source: Transformers 5.23, models/paligemma/processing_paligemma.py, `prepare_inputs_layout`.
    """
    if num_images < 1:
        raise PromptError("the model needs an image: expected 1 or more, got none")
    check_unicode(prompt)
    marks = prompt.count(IMAGE)
    if marks not in (0, num_images):
        raise PromptError(
            f"the prompt holds {marks} {IMAGE}, the number of images is {num_images}: expected one mark for each; "
            f"leave {IMAGE} out of the prompt to put all images first"
        )
    marked = prompt if marks else IMAGE * num_images + prompt
    head, last_image, tail = marked.rpartition(IMAGE)
    layout = tokenizer.tokenize(head + last_image + tokenizer.piece(tokenizer.bos_id) + tail + "\n")
    ids: list[int] = []
    for token_id in layout:
        ids += [token_id] * (num_image_tokens if token_id == tokenizer.image_token_id else 1)
    return ids
