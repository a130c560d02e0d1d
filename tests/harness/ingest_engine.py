"""The import engine as its tests call it: a split, its copies and pictures; and how what came out is looked at."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pikepdf
import pypdfium2
import pytest
from PIL import Image

from harness.pdfs import read_label
from korrigo_ingest.domain.plan import Mode, PageSize, SplitConfig, SplitPlan, split
from korrigo_ingest.engine.cutting import cut_copies
from korrigo_ingest.engine.inspection import inspect_pdf
from korrigo_ingest.engine.pictures import page_pictures
from korrigo_kit.sandbox import EngineError

Json = dict[str, Any]


def plan_of(inspected: Json, mode: Mode, pages_per_booklet: int) -> SplitPlan:
    sizes = [PageSize(page["width"], page["height"]) for page in inspected["pages"]]
    return split(sizes, SplitConfig(mode, pages_per_booklet))


def requests(plan: SplitPlan) -> list[list[Json]]:
    return [[{"index": half.page_index, "clip": half.clip} for half in copy] for copy in plan.copies]


def cut(folder: Path, source: str, mode: Mode, pages_per_booklet: int) -> tuple[SplitPlan, list[Json]]:
    inspected = inspect_pdf(folder, source=source)
    plan = plan_of(inspected, mode, pages_per_booklet)
    return plan, cut_copies(folder, source=source, copies=requests(plan), clean=inspected["clean"])


def picture_all(folder: Path, source: str, pages: Sequence[Json]) -> list[Json]:
    made: list[Json] = []
    for start in range(0, len(pages), 20):
        made += page_pictures(folder, source=source, pages=pages[start : start + 20], prefix=f"p{start}")
    return made


def rendered(path: Path, index: int, dpi: float = 50) -> Image.Image:
    with pypdfium2.PdfDocument(path) as document:
        image: Image.Image = document[index].render(scale=dpi / 72).to_pil().convert("RGB")
    return image


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures of one thing, as grey levels; sizes may differ by a pixel."""
    small = [np.asarray(image.convert("L").resize((200, 280)), dtype=np.int16) for image in (one, other)]
    return float(np.abs(small[0] - small[1]).mean())


def image_hashes(path: Path) -> set[str]:
    """Hash every image stream of a file, as stored, and the pixels it decodes to."""
    found = set()
    with pikepdf.open(path) as pdf:
        for item in pdf.objects:
            if isinstance(item, pikepdf.Stream) and item.stream_dict.get("/Subtype") == "/Image":
                found.add(hashlib.sha256(item.read_raw_bytes()).hexdigest())
    return found


def qpdf_check(path: Path) -> tuple[int, str]:
    done = subprocess.run(["qpdf", "--check", str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def require_sound(path: Path) -> None:
    code, text = qpdf_check(path)
    assert code == 0, text


def label_of(path: Path) -> str:
    return str(read_label(Image.open(path)))


def refused(folder: Path, source: str, **limits: Any) -> str:
    with pytest.raises(EngineError) as caught:
        inspect_pdf(folder, source=source, **limits)
    return caught.value.reason


def altered(source: Path, target: Path, change: Callable[[pikepdf.Pdf], None], **saving: Any) -> Path:
    with pikepdf.open(source) as pdf:
        change(pdf)
        pdf.save(target, **saving)
    return target


def share_resources(pdf: pikepdf.Pdf) -> None:
    """Give all pages one resource dictionary; page 1 draws through a form without, page 2 with resources."""
    everything = pikepdf.Dictionary({f"/S{n}": page.obj.Resources.XObject.Scan for n, page in enumerate(pdf.pages)})
    shared = pdf.make_indirect(pikepdf.Dictionary(XObject=everything))
    form = {"Type": pikepdf.Name.XObject, "Subtype": pikepdf.Name.Form, "BBox": [0, 0, 1, 1]}
    everything["/F0"] = pdf.make_stream(b"/S0 Do", **form)
    everything["/F1"] = pdf.make_stream(b"/S1 Do", **form, Resources=shared)
    for number, page in enumerate(pdf.pages):
        page.obj.Resources = shared
        name = f"F{number}" if number < 2 else f"S{number}"
        page.obj.Contents = pdf.make_stream(f"q 595.28 0 0 841.89 0 0 cm /{name} Do Q".encode())
