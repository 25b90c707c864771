"""The model's speed as a share of what the machine can do, both measured in the same run."""
