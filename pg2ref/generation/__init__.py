"""From logits to text, one token at a time."""
