"""The least that a program with Transformers does from an image file to its first token; tools/bench_peers.py times it.

python tools/peer_first_token.py FOLDER IMAGE PROMPT
"""

import os
import sys

import torch
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration


def main(folder: str, image: str, prompt: str) -> None:
    """Print the first token."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    processor = AutoProcessor.from_pretrained(folder)
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    inputs = processor(text=f"<image>{prompt}", images=Image.open(image).convert("RGB"), return_tensors="pt")
    inputs = inputs.to(torch.bfloat16)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    print(processor.decode(output[0, inputs["input_ids"].shape[1] :]))


if __name__ == "__main__":
    main(*sys.argv[1:])
