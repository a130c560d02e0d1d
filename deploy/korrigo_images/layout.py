"""What buildah exports, made one OCI archive that containerd imports with all its names.

Called by `korrigo_images.build`. The format is the OCI image layout
(https://github.com/opencontainers/image-spec/blob/main/image-layout.md); containerd takes an image's name from the
annotation `io.containerd.image.name`, other tools from `org.opencontainers.image.ref.name`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layer:
    """One layer: its digest and its size in bytes, unpacked as the archive holds it."""

    digest: str
    size: int


def pack(folder: Path, references: Mapping[str, str], archive: Path) -> None:
    """Write one archive of all images; the same images give the same bytes.

    `folder` holds one folder for each image as the transport `dir:` writes it: manifest.json, and every blob under its
    digest. (buildah's own `oci:` would compress every layer.)
    """
    blobs: dict[str, Path] = {}
    manifests = []
    for image, reference in sorted(references.items()):
        files = {file.name: file for file in (folder / image).iterdir()}
        content = files["manifest.json"].read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = files["manifest.json"]
        described = json.loads(content)
        for part in (described["config"], *described["layers"]):
            name = part["digest"].removeprefix("sha256:")
            blobs[name] = files[name]
        manifests.append(
            {
                "mediaType": described["mediaType"],
                "digest": f"sha256:{digest}",
                "size": len(content),
                "annotations": {_REF_NAME: reference, "io.containerd.image.name": reference},
            }
        )
    index = folder / "index.json"
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}, sort_keys=True))
    version = folder / "oci-layout"
    version.write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    making = archive.with_name(f"{archive.name}.making")
    with tarfile.open(making, "w") as tar:
        for file in (version, index):
            tar.add(file, file.name, filter=_neutral)
        for name, blob in sorted(blobs.items()):
            tar.add(blob, f"blobs/sha256/{name}", filter=_neutral)
    making.rename(archive)


def _neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o644
    return entry


def layers(archive: Path, references: Mapping[str, str]) -> dict[str, list[Layer]]:
    """Return the layers of every image, lowest first."""
    with tarfile.open(archive) as tar:
        return {
            image: [Layer(layer["digest"], layer["size"]) for layer in manifest(tar, reference)["layers"]]
            for image, reference in references.items()
        }


def manifest(tar: tarfile.TarFile, reference: str) -> dict[str, Any]:
    """Return the manifest of one image of an archive; raises KeyError when it holds no such image."""
    for described in read_json(tar, "index.json")["manifests"]:
        if described["annotations"][_REF_NAME] == reference:
            return read_blob(tar, described["digest"])
    raise KeyError(reference)


def read_blob(tar: tarfile.TarFile, digest: str) -> dict[str, Any]:
    """Return a small content of the archive that is JSON."""
    return read_json(tar, f"blobs/{digest.replace(':', '/')}")


def read_json(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    """Return a file of the archive that is JSON."""
    content = tar.extractfile(name)
    assert content is not None, f"{name} is no file"
    parsed: dict[str, Any] = json.load(io.TextIOWrapper(content))
    return parsed


def unpack(archive: Path, reference: str, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack those files of an image whose path is wanted; a later layer's replace an earlier one's."""
    with tarfile.open(archive) as tar:
        for layer in manifest(tar, reference)["layers"]:
            content = tar.extractfile(f"blobs/{layer['digest'].replace(':', '/')}")
            assert content is not None
            with tarfile.open(fileobj=content) as files:
                for entry in files:
                    if entry.isfile() and wanted(entry.name):
                        files.extract(entry, folder, filter="data")
