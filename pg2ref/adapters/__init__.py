"""Fine-tunes that come as an addition to a checkpoint: LoRA folders as the peft package writes them."""
