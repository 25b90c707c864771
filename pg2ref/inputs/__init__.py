"""What a person brings, an image and a prompt, as the arrays and ids the model reads."""
