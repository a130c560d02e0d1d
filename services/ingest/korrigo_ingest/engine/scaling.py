"""Make a smaller copy of a stored page picture, for `?width=`; called by the pages face in the sandbox."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from korrigo_ingest.engine import codec
from korrigo_kit.sandbox import EngineError

MIN_WIDTH = 16


def scaled(workdir: Path, *, picture: str = "picture.jpg", width: int, target: str = "scaled.jpg") -> dict[str, Any]:
    """Scale a JPEG picture down to `width` pixels; a picture that is not wider is given as it is.

    Returns {file, sha256, size, width, height, mime, verbatim}. Raises EngineError CORRUPTED_PDF when the stored
    picture does not decode.
    """
    data = (workdir / picture).read_bytes()
    header = codec.read_header(data)
    if header is None:
        raise EngineError("CORRUPTED_PDF", "the picture is not a JPEG that can be decoded")
    width = max(width, MIN_WIDTH)
    if width >= header.width:
        height, width, file, is_verbatim = header.height, header.width, picture, True
    else:
        height = max(1, round(header.height * width / header.width))
        try:
            pixels = codec.decode(data, min_width=width, min_height=height, is_grey=header.components == 1)
        except ValueError as error:
            raise EngineError("CORRUPTED_PDF", f"the picture does not decode: {error!s:.200}") from error
        data = codec.encode(codec.resized(pixels, width, height))
        (workdir / target).write_bytes(data)
        file, is_verbatim = target, False
    return {
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "width": width,
        "height": height,
        "mime": "image/jpeg",
        "verbatim": is_verbatim,
    }
