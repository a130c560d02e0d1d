"""Makes OCI images out of folders, without Docker and without root: a layer is a tar, an image is some JSON beside it.

Called by the cluster's own images here, and by whoever has a folder that should run in a pod. The archive follows the
OCI image layout (https://github.com/opencontainers/image-spec/blob/main/image-layout.md) and is what
`ctr -n k8s.io images import` reads. The same folder gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# what the times of all files are: contents decide about an image's digest, and nothing else
_EPOCH = 0
_NAME = "io.containerd.image.name"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image starts (the `config` of an OCI image)."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = "65532:65532"
    working_folder: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the object of the specification."""
        return {
            "User": self.user,
            "Env": [f"{name}={value}" for name, value in self.environment.items()],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.working_folder,
            "Labels": dict(self.labels),
        }


@dataclass(frozen=True)
class _Blob:
    """One named content of the archive, in memory (small) or in a file (a layer)."""

    digest: str
    size: int
    content: bytes | Path

    def described(self, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": self.digest, "size": self.size}


def oci_image(layers: Path | Sequence[Path], config: ImageConfig, name: str, archive: Path) -> Path:
    """Write an OCI archive and return its path; `name` is the full reference, as pods ask for it.

    Each layer, lowest first, is a folder (all its files become root's and keep their modes) or a tar taken as it is.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        sources = [layers] if isinstance(layers, Path) else layers
        layer_blobs = [_layer(source, Path(scratch) / str(number)) for number, source in enumerate(sources)]
        settings = _json(
            {
                **_platform(),
                "created": "1970-01-01T00:00:00Z",
                "config": config.as_json(),
                "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layer_blobs]},
            }
        )
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": settings.described("application/vnd.oci.image.config.v1+json"),
                "layers": [layer.described("application/vnd.oci.image.layer.v1.tar") for layer in layer_blobs],
            }
        )
        _write(archive, [*layer_blobs, settings, manifest], _index(manifest, name))
    return archive


def with_layer(archive: Path, reference: str, folder: Path, name: str, target: Path) -> Path:
    """Write an image of another archive, called `name`, with the files of a folder on top; returns the path.

    Only what is new is in it: the layers below must be where it is imported. Raises StopIteration when the archive
    holds no image `reference`.
    """
    with tarfile.open(archive) as tar:
        described = _read(tar, "index.json")["manifests"]
        found = next(one for one in described if one["annotations"][_NAME] == reference)
        manifest = _read(tar, _place(found["digest"]))
        settings = _read(tar, _place(manifest["config"]["digest"]))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        layer = _layer(folder, Path(scratch) / "layer")
        settings["rootfs"]["diff_ids"].append(layer.digest)
        # it would have to tell of every layer
        settings.pop("history", None)
        changed = _json(settings)
        manifest["config"] = changed.described(manifest["config"]["mediaType"])
        manifest["layers"].append(layer.described("application/vnd.oci.image.layer.v1.tar"))
        whole = _json(manifest)
        _write(target, [layer, changed, whole], _index(whole, name))
    return target


def _read(tar: tarfile.TarFile, path: str) -> Any:
    content = tar.extractfile(path)
    assert content is not None, path
    return json.load(content)


def _place(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _index(manifest: _Blob, name: str) -> _Blob:
    annotations = {
        _NAME: name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    entry = {**manifest.described(_MANIFEST), "platform": _platform(), "annotations": annotations}
    return _json({"schemaVersion": 2, "manifests": [entry]})


def _platform() -> dict[str, str]:
    return {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}


def _write(archive: Path, blobs: Sequence[_Blob], index: _Blob) -> None:
    making = archive.with_name(f"{archive.name}.making")
    with tarfile.open(making, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for digest, blob in {blob.digest: blob for blob in blobs}.items():
            _add(tar, _place(digest), blob)
    making.rename(archive)


def _add(tar: tarfile.TarFile, name: str, blob: _Blob) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = blob.size
    entry.mtime = _EPOCH
    if isinstance(blob.content, bytes):
        tar.addfile(entry, io.BytesIO(blob.content))
    else:
        with blob.content.open("rb") as content:
            tar.addfile(entry, content)


def _layer(source: Path, scratch: Path) -> _Blob:
    """Return a layer; a folder's bytes depend on names, modes and contents alone."""
    path = source
    if source.is_dir():
        path = scratch
        with tarfile.open(scratch, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for file in sorted(source.rglob("*")):
                tar.add(file, str(file.relative_to(source)), recursive=False, filter=_neutral)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return _Blob(f"sha256:{digest}", path.stat().st_size, path)


def _neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = _EPOCH
    return entry


def _json(value: object) -> _Blob:
    content = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return _Blob(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), content)
