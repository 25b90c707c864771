"""Names of models on the Hugging Face Hub: `org/name` or `org/name@revision`, and nothing that could be a path."""

import re
from typing import NamedTuple

EXAMPLE_ID = "google/paligemma2-3b-mix-224"
MAIN_REVISION = "main"
MAX_ID_LENGTH = 96  # as on the Hub
PAGE = "https://huggingface.co"  # where licences are accepted, whatever server files come from
_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION_PATTERN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)  # refs/pr/1 is one, ../x is not


class ModelName(NamedTuple):
    """A model and which of its states: a branch, a tag, or a commit of 40 digits."""

    model_id: str
    revision: str

    def __str__(self) -> str:
        """As it is given on the command line."""
        return self.model_id if self.revision == MAIN_REVISION else f"{self.model_id}@{self.revision}"


def parse_name(text: str) -> ModelName | None:
    """The two parts of `org/name[@revision]`; None where it is no such name, path tricks included."""
    model_id, at, revision = text.partition("@")
    revision = revision if at else MAIN_REVISION
    if len(text) > 2 * MAX_ID_LENGTH or len(model_id) > MAX_ID_LENGTH or ".." in text or "--" in model_id:
        return None
    if not _ID_PATTERN.fullmatch(model_id) or not _REVISION_PATTERN.fullmatch(revision):
        return None
    return ModelName(model_id, revision)


def download_advice(name: ModelName) -> str:
    """What to type, for a message that says that something is missing."""
    return (
        f"run `pg2ref download {name}` (it needs `pip install 'pg2ref[hub]'`), "
        f"once Gemma's licence is accepted at {PAGE}/{name.model_id}"
    )
