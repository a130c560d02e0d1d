"""Final PDFs as the tests make and read them: a manifest, small sources of every geometry, texts and pixels.

Readers: qpdf, poppler, PDFium; none of them wrote the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pikepdf
import pypdfium2

from korrigo_render.engine.append import append
from korrigo_render.engine.verify import verify

KINDS = ("COMMENT", "HIGHLIGHT", "ERROR", "BONUS", "TEXT", "INK", "STAMP")
TEXTS = (
    "Erreur de signe : −3 au lieu de +3.",
    "Très bon raisonnement, mais vérifiez l’hypothèse α ≤ β avant d’appliquer le théorème.",
    "Où est l’unité ? Œuvre inachevée.",
    "Jusqu’ici ∑ k² ≠ n(n+1)/2, √(x²) = |x| → revoir Ω.",
)
MARK = b"q 0 0.6 0 rg 150 200 40 25 re f Q\n"  # a green block in the page's own content
BOX = (0.2, 0.3, 0.25, 0.1)
Pixels = npt.NDArray[np.uint8]


def annotation(
    number: int, page: int, kind: str, box: Sequence[float], content: str = "", **more: Any
) -> dict[str, Any]:
    x, y, w, h = box
    return {
        "id": f"a{number:03d}", "page_index": page, "x": x, "y": y, "w": w, "h": h, "type": kind, "content": content,
        "score_delta_hundredths": None, "question_label": None, **more,
    }  # fmt: skip


def manifest_of(source: Path, annotations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    sizes = page_sizes(source)
    return {
        "v": 1,
        "copy_id": "019405ab-7c1e-7b10-9d1e-0d5b2f7f1a11",
        "anonymous_id": "K7QX-42MB",
        "revision": 2,
        "exam": {"name": "Bac blanc – Mathématiques", "date": "2026-03-12"},
        "pages": [{"page_id": f"p{i}", "index": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        "annotations": annotations,
        "questions": [
            question(1, "Exercice 1 : dériver f", 600, 450),
            question(2, "Exercice 2", 400, None, state="NOT_ATTEMPTED"),
            question(3, "Exercice 3", 1000, 875, remark="Rédaction très soignée."),
        ],
        "total_hundredths": 1325,
        "max_hundredths": 2000,
        "appreciation": "Bon devoir.\nContinuez ainsi !",
        "marker_code": "C-07",
        "finalized_at": "2026-03-18T14:05:00+00:00",
        "source_sha256": sha256(source),
        "public_url": "https://notes.example.org",
        "language": "fr",
        **more,
    }


def question(
    number: int, label: str, most: int, score: int | None, state: str = "SCORED", **more: Any
) -> dict[str, Any]:
    return {
        "id": f"q{number}", "label": label, "max_hundredths": most, "score_hundredths": score, "state": state, **more,
    }  # fmt: skip


def some_annotations(pages: int) -> list[dict[str, Any]]:
    """One of each type on every page, with texts, at spots that do not repeat."""
    made = []
    for page in range(pages):
        for i, kind in enumerate(KINDS):
            n = page * len(KINDS) + i
            box = (0.08 + 0.11 * (n % 7), 0.06 + 0.13 * i, 0.12, 0.03)
            a = annotation(n, page, kind, box, TEXTS[n % len(TEXTS)])
            if kind in ("ERROR", "BONUS"):
                a |= {"score_delta_hundredths": -100 if kind == "ERROR" else 50, "question_label": "Ex 1.a"}
            if kind == "STAMP":
                a["content"] = "✓✗?"[page % 3]
            if kind == "INK":
                points = [[box[0] + box[2] * t / 30, box[1] + box[3] * (t % 5) / 5, 0.5] for t in range(31)]
                a |= {"content": "", "strokes": [{"width": 0.004, "points": points}]}
            made.append(a)
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def page_sizes(path: Path) -> list[tuple[float, float]]:
    with pypdfium2.PdfDocument(path) as document:
        return [document.get_page_size(i) for i in range(len(document))]


def build(workdir: Path, source: Path, annotations: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Run the engine as the product does and check what must hold for every final PDF."""
    workdir.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    (workdir / "source.pdf").write_bytes(data)
    (workdir / "manifest.json").write_text(json.dumps(manifest_of(source, annotations, **more)))
    result = append(workdir)
    final = (workdir / "final.pdf").read_bytes()
    assert final[: len(data)] == data
    assert (len(final), hashlib.sha256(final).hexdigest()) == (result["size"], result["sha256"])
    checked = verify(
        workdir, final="final.pdf", source="source.pdf", expected_pages=result["pages"],
        annotated_pages=result["annotated_pages"],
    )  # fmt: skip
    assert (checked["pages"], checked["source_pages"]) == (result["pages"], result["source_pages"])
    assert checked["sha256"] == result["sha256"]
    append(workdir, out="again.pdf")
    assert (workdir / "again.pdf").read_bytes() == final, "not deterministic"
    return result


def qpdf_code(path: Path) -> int:
    return subprocess.run(["qpdf", "--check", path], capture_output=True, check=False).returncode


def text_of(path: Path, *options: str) -> str:
    """Return the text without white space: where lines break is a matter of layout."""
    run = subprocess.run(["pdftotext", "-raw", *options, path, "-"], capture_output=True, check=True)
    return re.sub(r"\s", "", run.stdout.decode())


def running_text_of(path: Path) -> str:
    """Return the text without white space and without what is repeated on every score page."""
    run = subprocess.run(["pdftotext", "-raw", path, "-"], capture_output=True, check=True)
    text = re.sub(r"Bac blanc – Mathématiques Copie K7QX-42MB · page \d+/\d+\n", "", run.stdout.decode())
    return re.sub(r"\s", "", text).replace("QuestionNoteBarème", "")


def assert_texts_found(path: Path, annotations: list[dict[str, Any]]) -> None:
    found = running_text_of(path)
    for a in annotations:
        assert re.sub(r"\s", "", a["content"]) in found, a


def small_pdf(
    path: Path,
    *,
    rotate: int = 0,
    media: Sequence[float] = (0, 0, 595, 842),
    crop: Sequence[float] | None = None,
    streams: bool = False,
    content: bytes = MARK,
    inherit: bool = False,
    change: Callable[[pikepdf.Pdf], None] | None = None,
) -> Path:
    with pikepdf.new() as pdf:
        page = pikepdf.Dictionary(
            Type=pikepdf.Name.Page, Contents=pdf.make_stream(content), Resources=pikepdf.Dictionary()
        )
        holder = pdf.Root.Pages if inherit else page
        holder.MediaBox = pikepdf.Array(list(media))
        if crop is not None:
            holder.CropBox = pikepdf.Array(list(crop))
        if rotate:
            holder.Rotate = rotate
        if inherit:
            del page["/Resources"]
            font = pikepdf.Dictionary(
                Type=pikepdf.Name.Font, Subtype=pikepdf.Name.Type1, BaseFont=pikepdf.Name.Helvetica
            )
            holder.Resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(H=font))
        reference = pdf.make_indirect(page)
        reference.Parent = pdf.Root.Pages
        pdf.Root.Pages.Kids = pikepdf.Array([reference])
        pdf.Root.Pages.Count = 1
        if change is not None:
            change(pdf)
        mode = pikepdf.ObjectStreamMode.generate if streams else pikepdf.ObjectStreamMode.disable
        pdf.save(path, object_stream_mode=mode, deterministic_id=True)
    return path


def pixels(path: Path, index: int = 0) -> Pixels:
    """Render a page at one pixel a unit, as RGB."""
    with pypdfium2.PdfDocument(path) as document:
        bitmap = document[index].render(scale=1, rev_byteorder=True)
        return np.array(bitmap.to_numpy())[:, :, :3]
