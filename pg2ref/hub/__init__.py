"""Models by name: the local Hugging Face cache, and the Hub itself when the user asks for a download."""
