"""Step 5 of 9: image features -> image embeddings, one linear layer with bias. Next: gemma2.py.

No norm, no activation, and no scaling by the square root of the width afterwards: text embeddings are scaled, image
embeddings are not (big_vision models/proj/paligemma/paligemma.py; several ports got this wrong).
"""

from pg2ref.arrays import Array
from pg2ref.model.backend import REFERENCE, Ops
from pg2ref.model.ops import Affine
from pg2ref.trace import Tap, no_tap


def project(linear: Affine, features_IE: Array, *, ops: Ops = REFERENCE, tap: Tap = no_tap) -> Array:
    """Image embeddings `image_embeddings_ID` ("soft tokens" in the paper)."""
    return tap("projector/out", ops.linear(features_IE, *linear))
