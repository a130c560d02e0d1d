"""Says what is in an image: every Python distribution and every Debian package, as CycloneDX JSON.

Called by `korrigo_images.command` after a build; a scanner reads the files that lie beside the archive. What is listed
is read from the image itself, not from the locks, so that the two can be compared.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

SITE_PACKAGES = Path("opt/korrigo/lib/python3.11/site-packages")
_DPKG_STATUS = Path("var/lib/dpkg/status")
_DISTRIBUTION = "debian-12"


@dataclass(frozen=True)
class Installed:
    """One thing that was installed: where it comes from is in its package URL (pkg:pypi/…, pkg:deb/debian/…)."""

    name: str
    version: str
    purl: PackageURL
    licence: str | None = None


def is_evidence(path: str) -> bool:
    """Say whether a file of an image tells what was installed."""
    return path.removeprefix("./") == str(_DPKG_STATUS) or path.endswith(".dist-info/METADATA")


def installed(root: Path) -> list[Installed]:
    """List what a root file system holds, sorted by package URL."""
    return sorted([*_python(root), *_debian(root)], key=lambda item: item.purl.to_string())


def _python(root: Path) -> Iterator[Installed]:
    for distribution in distributions(path=[str(root / SITE_PACKAGES)]):
        name = distribution.metadata["Name"]
        purl = PackageURL("pypi", name=name.lower().replace("_", "-").replace(".", "-"), version=distribution.version)
        yield Installed(name, distribution.version, purl, _licence(distribution))


def _licence(distribution: Distribution) -> str | None:
    metadata = distribution.metadata
    # the old field may hold a whole text
    stated = next(iter(metadata.get_all("License-Expression") or metadata.get_all("License") or ()), None)
    return stated if stated and "\n" not in stated and len(stated) < 100 else None


def _debian(root: Path) -> Iterator[Installed]:
    for package in _paragraphs((root / _DPKG_STATUS).read_text()):
        if package["Status"] == "install ok installed":
            qualifiers = {"arch": package["Architecture"], "distro": _DISTRIBUTION}
            purl = PackageURL("deb", "debian", package["Package"], package["Version"], qualifiers)
            yield Installed(package["Package"], package["Version"], purl)


def _paragraphs(text: str) -> Iterable[Message]:
    return [HeaderParser().parsestr(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]


def bill_of_materials(name: str, version: str, items: Iterable[Installed], digest: str) -> str:
    """Return the CycloneDX 1.6 document of one image."""
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, digest))
    image = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref=name)
    bom.metadata.component = image
    for item in items:
        licences = [DisjunctiveLicense(name=item.licence)] if item.licence else []
        component = Component(
            name=item.name,
            version=item.version,
            type=ComponentType.LIBRARY,
            purl=item.purl,
            bom_ref=item.purl.to_string(),
            licenses=licences,
        )
        bom.components.add(component)
    # flat: what an image was made to hold, without who asked for whom
    bom.register_dependency(image, bom.components)
    return str(JsonV1Dot6(bom).output_as_string(indent=1))
