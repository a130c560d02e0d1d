"""A marker never learns whose copy it is: not from answers, not from pictures, not from caches."""

from __future__ import annotations

import io
import itertools
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from PIL import Image, ImageChops, ImageStat

from harness.cast import NAMED_FILE, Cast, Things, prepare
from harness.client import Client, Json
from harness.instance import Instance
from harness.pdfs import read_label

# What is shown to whom is decided by the same code in both modes.
pytestmark = pytest.mark.parametrize("instance", ["embedded"], indirect=True)

# What is hidden of page 1 of each booklet (decisions.md, Anonymity), and how far JPEG may blur its border.
MASKED = 0.25
BORDER_PIXELS = 9
# The masked picture is a second generation of the scan's JPEG; noise, no content.
SECOND_GENERATION = 72
MASKED_READERS = ("marker", "lead_marker", "auditor")


@dataclass(frozen=True)
class Desk:
    """Two booklets of two pages, from a file that names a pupil."""

    admin: Client
    people: Cast
    things: Things

    def copy(self, name: str, copy_id: str) -> Json:
        """Read a copy as somebody."""
        found = self.people[name].http.get(f"/api/copies/{copy_id}")
        assert found.status_code == 200, found.text
        document: Json = found.json()
        return document

    def picture(self, name: str, url: str, **headers: str) -> bytes:
        """Fetch a picture as somebody."""
        found = self.people[name].http.get(url, headers=headers)
        assert (found.status_code, found.headers["Content-Type"]) == (200, "image/jpeg"), found.text
        return found.content


@pytest.fixture(scope="module")
def desk(instance: Instance, admin: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Import the named file, once per instance."""
    with Cast(admin, secrets.token_hex(3)) as people:
        yield Desk(admin, people, prepare(admin, people, tmp_path_factory.mktemp("anonymous")))


def picture(data: bytes) -> Image.Image:
    """Decode a picture."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def band(image: Image.Image, top: float, bottom: float, margin: int = 0) -> Image.Image:
    """Cut a horizontal band, in fractions of the height, without its border."""
    return image.crop((0, round(top * image.height) + margin, image.width, round(bottom * image.height) - margin))


def is_one_colour(image: Image.Image) -> bool:
    """Tell whether a picture shows nothing at all (JPEG may be off by two)."""
    return all(high - low <= 2 for low, high in image.getextrema())  # type: ignore[misc]


def difference(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of any pixel of two pictures of one size."""
    assert one.size == other.size
    return max(high for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of the pixels of two pictures."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.mark.parametrize("width", [None, 300, 64])
def test_only_the_head_of_page_one_is_hidden(desk: Desk, width: int | None) -> None:
    more = f"&width={width}" if width else ""
    copies = (desk.things.graded_id, desk.things.locked_id)
    for name, copy_id in itertools.product(MASKED_READERS, copies):
        open_pages, masked_pages = desk.admin.copy(copy_id)["pages"], desk.copy(name, copy_id)["pages"]
        assert len(open_pages) == len(masked_pages) == 2
        for shown, hidden in zip(open_pages, masked_pages, strict=True):
            whole = picture(desk.picture("admin", shown["image_url"] + more))
            masked = picture(desk.picture(name, hidden["image_url"] + more))
            if width:
                assert masked.width == whole.width == width
            if hidden["index"] > 0:
                assert difference(whole, masked) == 0
                continue
            assert not is_one_colour(band(whole, 0, MASKED)), "there was something to hide"
            assert is_one_colour(band(masked, 0, MASKED, BORDER_PIXELS))
            rests = [band(image, MASKED, 1, BORDER_PIXELS) for image in (whole, masked)]
            assert difference(*rests) <= SECOND_GENERATION and mean_difference(*rests) < 2
            if width is None:
                assert read_label(masked) == read_label(whole) is not None


def test_addresses_and_caches_open_nothing(desk: Desk) -> None:
    copy_id = desk.things.locked_id
    shown = desk.admin.copy(copy_id)["pages"][0]["image_url"]
    answer = desk.people["admin"].http.get(shown)
    whole, tag = answer.content, answer.headers["ETag"]
    for name in MASKED_READERS:
        hidden = desk.copy(name, copy_id)["pages"][0]["image_url"]
        assert hidden != shown
        assert hidden.split("?")[0] == shown.split("?")[0], "the same page under another version"
        masked = desk.picture(name, hidden)
        bare = shown.split("?")[0]
        for url in (shown, bare, f"{bare}?v=x", f"{bare}/", shown.replace("?", "/?")):
            assert desk.picture(name, url) == masked, url
        assert whole != masked
        # knowing the tag of the whole picture is neither a way to it nor a proof of it
        for value in (tag, f"W/{tag}", f'{tag}, "x"'):
            assert desk.picture(name, shown, **{"If-None-Match": value}) == masked
        assert desk.people[name].http.get(hidden).headers["ETag"] != tag
        own = desk.people[name].http.get(hidden).headers["ETag"]
        assert desk.people[name].http.get(hidden, headers={"If-None-Match": own}).status_code == 304
        assert desk.people["admin"].http.get(shown, headers={"If-None-Match": own}).content == whole
        assert desk.picture(name, shown, Range="bytes=0-") == masked
        for extra in ("masked=false", "unmasked=1", "role=admin", "width=300&width=400"):
            assert is_one_colour(band(picture(desk.picture(name, f"{bare}?{extra}")), 0, MASKED, BORDER_PIXELS))
    assert "private" in answer.headers["Cache-Control"]
    assert {"authorization", "cookie"} <= {word.strip().lower() for word in answer.headers["Vary"].split(",")}


def test_pages_beyond_the_first_are_the_same_picture_under_the_same_address(desk: Desk) -> None:
    for copy_id in (desk.things.graded_id, desk.things.locked_id):
        second = [desk.copy(name, copy_id)["pages"][1]["image_url"] for name in ("admin", *MASKED_READERS)]
        assert len(set(second)) == 1


def test_the_scan_operator_sees_what_he_scans(desk: Desk) -> None:
    shown = desk.admin.copy(desk.things.locked_id)["pages"][0]["image_url"]
    assert desk.copy("scan_operator", desk.things.locked_id)["pages"][0]["image_url"] == shown
    assert desk.picture("scan_operator", shown) == desk.picture("admin", shown)


def test_the_unmasked_final_pdf_is_for_admins_before_release(desk: Desk) -> None:
    path = f"/api/copies/{desk.things.graded_id}/final-pdf"
    tag = desk.people["admin"].http.get(path).headers["ETag"]
    for name in ("marker", "colleague", "stranger", "student", "scan_operator", "auditor", "lead_marker"):
        for headers in ({}, {"If-None-Match": tag}, {"Range": "bytes=0-99"}):
            answer = desk.people[name].http.get(path, headers=headers)
            assert (answer.status_code, answer.headers.get("ETag")) == (403, None), name
        assert desk.people[name].http.get(path, params={"revision": 1}).status_code == 403
        assert desk.people[name].http.head(path).status_code == 403
    assert desk.people["admin"].http.get(path).content.startswith(b"%PDF-")


def test_no_answer_to_a_marker_names_anybody(desk: Desk) -> None:
    """Everything that a marker may read, and every refusal, without the file's name or the exam's students."""
    things = desk.things
    ids = [things.exam["id"], things.other_exam["id"], things.graded_id, things.locked_id, things.scan_id]
    page_id = desk.admin.copy(things.locked_id)["pages"][0]["page_id"]
    document = desk.admin.json("GET", "/api/openapi.json")
    reads = [path for path, item in document["paths"].items() if "get" in item]
    assert len(reads) > 15
    told = {}
    for template in reads:
        for some_id in [*ids, page_id] if "{" in template else [""]:
            path = template
            for name in ("exam_id", "copy_id", "scan_id", "page_id", "user_id", "annotation_id"):
                path = path.replace("{" + name + "}", some_id)
            for name in ("marker", "colleague", "lead_marker", "auditor"):
                answer = desk.people[name].http.get(path)
                headers = json.dumps(dict(answer.headers))
                told[f"{name} {path}"] = answer.content + headers.encode()
    # the exam's own name is told to those who mark it; the pupil's is not
    leaks = [what for what, text in told.items() for name in ("DUPONT", "Jean", NAMED_FILE) if name.encode() in text]
    assert leaks == []
    assert any(things.locked_id.encode() in text for text in told.values()), "something was read at all"


def test_the_original_name_is_for_admins(desk: Desk) -> None:
    path = f"/api/scans/{desk.things.scan_id}"
    assert desk.people["admin"].http.get(path).json()["filename"] == NAMED_FILE
    for name in ("scan_operator", "lead_marker", "auditor"):
        scan = desk.people[name].http.get(path)
        assert scan.json()["filename"] is None and "DUPONT" not in scan.text
        assert "DUPONT" not in desk.people[name].http.get(f"{path}/events").text
    imported = desk.admin.audit(desk.things.graded_id)[0]
    assert imported["action"] == "IMPORT"
    assert imported["metadata"]["filename"] == f"upload-{desk.admin.scan(desk.things.scan_id)['sha256'][:8]}.pdf"


def test_codes_do_not_follow_the_order_of_the_scan(desk: Desk) -> None:
    codes = [desk.admin.copy(copy_id)["anonymous_id"] for copy_id in (desk.things.graded_id, desk.things.locked_id)]
    assert len(set(codes)) == 2
    assert all(len(code) >= 6 and code.isalnum() and code.upper() == code for code in codes)
