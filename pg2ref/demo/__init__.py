"""What the built-in model sees and is asked: synthetic scenes, their truth, their tasks."""
