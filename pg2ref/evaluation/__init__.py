"""How much a checkpoint is worth: measured against another, or against the truth."""
