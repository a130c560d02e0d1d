"""The image of the data services that the test cluster runs beside the product: no part of the chart.

One Debian image with PostgreSQL 15, RabbitMQ, nginx, Alertmanager, curl, and from the cluster's binaries the S3 server
(versitygw), Prometheus and the Prometheus Operator's config reloader. A pod chooses the program by its command; all
of them are on PATH, and user `services` (10002) can run each of them. Call:

    archive = backing_image.build(ensure_binaries())
    node.load_image(archive)          # pods ask for backing_image.SERVICES_IMAGE

The root file system is kept in the tool cache (minutes cold), and so is the archive (seconds when only the binaries
changed).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from cluster.binaries import ensure_binaries
from cluster.images import ImageConfig, oci_image
from korrigo_images.rootfs import Recipe, debian_rootfs, locked, tool_cache

SERVICES_IMAGE = "localhost/korrigo-test/services:1"
SERVICES_USER = 10002
# from the cluster's binaries, into /usr/local/bin
PROGRAMS = ("versitygw", "prometheus", "prometheus-config-reloader")
POSTGRES_BIN = "/usr/lib/postgresql/15/bin"
RABBITMQ_BIN = "/usr/lib/rabbitmq/bin"

RECIPE = Recipe(
    name="services",
    packages=(
        "ca-certificates",
        "curl",
        "nginx-light",
        "postgresql-15",
        "prometheus-alertmanager",
        "rabbitmq-server",
        "tini",
    ),
    left_out=(
        # the just-in-time compiler is as large as the rest of PostgreSQL; without llvmjit.so it is simply off
        "/usr/lib/*/libLLVM*",
        "/usr/lib/llvm-14/*",
        "/usr/lib/postgresql/15/lib/bitcode/*",
        "/usr/lib/postgresql/15/lib/llvmjit*",
    ),
    before=(
        # Debian's package would make a database of its own in the image
        'mkdir -p "$1/etc/postgresql-common"',
        'echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"',
    ),
    after=(
        # initdb and Erlang look their user up
        f'echo "services:x:{SERVICES_USER}:{SERVICES_USER}::/tmp:/bin/sh" >> "$1/etc/passwd"',
        f'echo "services:x:{SERVICES_USER}:" >> "$1/etc/group"',
    ),
)


def build(binaries: Path) -> Path:
    """Return the OCI archive of SERVICES_IMAGE; `binaries` is the folder of `cluster.binaries`.

    Raises korrigo_images.rootfs.ImagesFailed when Debian's packages cannot be had.
    """
    rootfs = debian_rootfs(RECIPE)
    config = ImageConfig(
        user=f"{SERVICES_USER}:{SERVICES_USER}",
        environment={
            "PATH": f"/usr/local/bin:{POSTGRES_BIN}:{RABBITMQ_BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/tmp",
        },
    )
    digest = hashlib.sha256(f"{rootfs.name} {config}".encode())
    for program in PROGRAMS:
        digest.update((binaries / program).read_bytes())
    folder = tool_cache() / "images" / "services"
    archive = folder / f"services-{digest.hexdigest()[:16]}.tar"
    with locked(folder / "lock"):
        if not archive.exists():
            _write(rootfs, binaries, config, archive)
    return archive


def _write(rootfs: Path, binaries: Path, config: ImageConfig, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        folder = Path(scratch) / "programs"
        target = folder / "usr" / "local" / "bin"
        target.mkdir(parents=True)
        for program in PROGRAMS:
            shutil.copyfile(binaries / program, target / program)
            (target / program).chmod(0o755)
        oci_image([rootfs, folder], config, SERVICES_IMAGE, archive)
    for old in archive.parent.glob("services-*.tar"):
        # one that is being imported by another run stays readable until that run closes it
        if old != archive and old.stat().st_mtime < archive.stat().st_mtime - 86400:
            os.unlink(old)


if __name__ == "__main__":
    print(build(ensure_binaries()), file=sys.stdout)
