"""The images that the test cluster runs, as OCI archives: the product's own, and the one of the data services.

Called before the chart is installed; the first time takes minutes, later ones a moment. Run as
`python -m cluster.product_images` it makes everything that a cluster needs, binaries first, and prints nothing else;
with `--behind` on what other programs leave of the machine (`make test` calls it so).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import backing_image
from cluster.binaries import ensure_binaries
from harness.processes import NotReady
from harness.servers import MissingTool
from korrigo_images.build import build
from korrigo_images.rootfs import ImagesFailed, MissingProgram

# where Python finds the product in its images
SITE_PACKAGES = "/opt/korrigo/lib/python3.11/site-packages"


def archives(binaries: Path) -> list[Path]:
    """Return every archive, building what is missing; `binaries` is the folder of `cluster.binaries`.

    Raises MissingTool when this machine cannot build them, NotReady when a build fails.
    """
    with _as_the_tests_say_it():
        return [backing_image.build(binaries), build().archive]


def product() -> Path:
    """Return the archive with all images of the product, `localhost/korrigo/PROGRAM:VERSION`; raises as `archives`."""
    with _as_the_tests_say_it():
        return build().archive


@contextmanager
def _as_the_tests_say_it() -> Iterator[None]:
    try:
        yield
    except MissingProgram as error:
        raise MissingTool(str(error)) from None
    except ImagesFailed as error:
        raise NotReady(str(error)) from None


def main(arguments: list[str]) -> int:
    """Build everything that is missing."""
    if arguments == ["--behind"]:
        os.nice(19)
    try:
        archives(ensure_binaries())
    except (MissingTool, NotReady) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
