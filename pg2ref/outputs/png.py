"""Pictures as PNG files in memory."""

import io

from PIL import Image

from pg2ref.arrays import Array


def png_bytes(pixels: Array) -> bytes:
    """A uint8 picture [height, width, 3], or a bool mask [height, width] in black and white, as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
