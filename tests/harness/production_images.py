"""Production mode out of the images: every process runs in its room's image, hardened as in a pod.

`Images` unpacks what `korrigo_images.build` made; `ProductionOfImages` is `Production` whose commands run in them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import containers
from harness.instance import KORRIGO
from harness.processes import clean_environment
from harness.production import Production
from harness.servers import S3, Postgres, RabbitMQ
from korrigo_images.build import Built

# the image's own ENV, which a runtime would set
IMAGE_ENVIRONMENT = {
    "PATH": "/opt/korrigo/bin:/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


class Images:
    """The images' layers in a folder, and the command lines that run in them."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.folder = Path(tempfile.mkdtemp(prefix="korrigo-images-"))
        (self.folder / "layers").mkdir()
        containers.unpack_layers(built.archive, self.folder / "layers")

    def layers(self, image: str) -> list[Path]:
        """Return the unpacked layers of an image, lowest first."""
        return [self.folder / "layers" / layer.digest.partition(":")[2] for layer in self.built.layers[image]]

    def command(self, image: str, *argv: str) -> list[str]:
        """Return the command line that runs `argv` under tini in an image."""
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        return containers.command(self.layers(image), scratch, "/usr/bin/tini", "--", *argv)

    def run(
        self, image: str, *argv: str, env: Mapping[str, str] | None = None, seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in an image; the caller looks at the exit code."""
        return subprocess.run(
            self.command(image, *argv),
            env=IMAGE_ENVIRONMENT | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """Remove the layers."""
        shutil.rmtree(self.folder, ignore_errors=True)


class ProductionOfImages(Production):
    """The four rooms on PostgreSQL, RabbitMQ and S3, each process in its image."""

    def __init__(self, postgres: Postgres, rabbitmq: RabbitMQ, s3: S3, images: Images) -> None:
        super().__init__(postgres, rabbitmq, s3)
        self.images = images

    @property
    def env(self) -> dict[str, str]:
        # the home of the tests' own files is not there in an image, as in a pod of a room
        kept = {name: value for name, value in super().env.items() if name.startswith("KORRIGO_")}
        del kept["KORRIGO_HOME"]
        return IMAGE_ENVIRONMENT | kept

    def cli(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return self.images.run("tools", "korrigo", *words, env=self.env, seconds=seconds)

    def _keep(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        if argv[0] != str(KORRIGO):
            super()._keep(name, argv, {**env, "PATH": os.environ["PATH"], **clean_environment()})
            return
        _, _, room = name.partition("-")
        super()._keep(name, self.images.command(room, "korrigo", *argv[1:]), env)
