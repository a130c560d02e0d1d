"""Make the font subsets shipped with the engine and the table of characters they cover. Run by a developer.

    python services/render/korrigo_render/engine/fonts/generate.py [FOLDER_OF_DEJAVU]

Reads DejaVuSans.ttf and DejaVuSans-Bold.ttf (Debian: fonts-dejavu-core), writes `sans.ttf` and `bold.ttf`
beside this file and `korrigo_kit/glyphs_table.py`. Composite glyphs are flattened and hinting is dropped, so
that `engine.font` can pick single glyphs by slicing bytes. tests/unit/test_glyphs.py fails when the outputs drift.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from fontTools import subset
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from fontTools.ttLib.scaleUpem import scale_upem
from fontTools.ttLib.tables._c_m_a_p import CmapSubtable

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[3] / "kit" / "korrigo_kit" / "glyphs_table.py"
DEJAVU = Path("/usr/share/fonts/truetype/dejavu")

# What a teacher of any school subject may type. Left out on purpose: invisible and direction-changing
# characters (U+200B..200F, U+2028..202E, U+2060..206F), which could make a text read otherwise than it is stored.
TEXT_RANGES = [
    (0x0020, 0x007E), (0x00A0, 0x00AC), (0x00AE, 0x024F), (0x02B0, 0x02FF), (0x0300, 0x036F), (0x0370, 0x03FF),
    (0x0400, 0x045F), (0x0490, 0x0491), (0x1D2C, 0x1D6A), (0x1E00, 0x1EFF), (0x2000, 0x200A), (0x2010, 0x2027),
    (0x202F, 0x205F),
    (0x2070, 0x209F), (0x20A0, 0x20BF), (0x20D7, 0x20D7), (0x2100, 0x214F), (0x2150, 0x218F), (0x2190, 0x21FF),
    (0x2200, 0x22FF), (0x2300, 0x23FF), (0x25A0, 0x25FF), (0x2600, 0x26FF), (0x2700, 0x27BF), (0x27C0, 0x27FF),
    (0x2A00, 0x2AFF), (0x2C7C, 0x2C7C), (0xFB00, 0xFB06), (0xFFFD, 0xFFFD),
]  # fmt: skip
# Headings and score labels; a heading with any other character is set in the regular face.
BOLD_RANGES = [
    (0x0020, 0x007E), (0x00A0, 0x00AC), (0x00AE, 0x017F), (0x0370, 0x03FF), (0x2010, 0x2027), (0x202F, 0x203A),
    (0x2070, 0x209F), (0x20AC, 0x20AC), (0x2190, 0x2193), (0x2212, 0x2212), (0x2260, 0x2265),
]  # fmt: skip


def _wanted(font: TTFont, ranges: list[tuple[int, int]]) -> list[int]:
    covered = font.getBestCmap()
    return [code for first, last in ranges for code in range(first, last + 1) if code in covered]


def make_subset(source: Path, ranges: list[tuple[int, int]]) -> tuple[bytes, list[int]]:
    """Return the bytes of the subset of `source` and the code points it covers."""
    font = TTFont(source, recalcTimestamp=False)
    codes = _wanted(font, ranges)
    options = subset.Options()
    options.hinting = False
    options.layout_features = []
    options.name_IDs = [0, 1, 2, 5, 6, 13, 14]
    options.notdef_outline = True
    options.drop_tables += ["GDEF", "GPOS", "GSUB", "FFTM", "kern", "gasp", "post", "OS/2"]
    worker = subset.Subsetter(options)
    worker.populate(unicodes=codes)
    worker.subset(font)
    _flatten_composites(font)
    scale_upem(font, 1000)  # what PDF widths are counted in; steps then mostly fit one byte, a fifth less to embed
    _one_plain_cmap(font)
    out = io.BytesIO()
    font.save(out)
    return out.getvalue(), codes


def _flatten_composites(font: TTFont) -> None:
    glyphs = font.getGlyphSet()
    table = font["glyf"]
    for name in font.getGlyphOrder():
        if not table[name].isComposite():
            continue
        recording = DecomposingRecordingPen(glyphs)
        glyphs[name].draw(recording)
        pen = TTGlyphPen(None)
        recording.replay(pen)
        table[name] = pen.glyph()


def _one_plain_cmap(font: TTFont) -> None:
    plain = CmapSubtable.newSubtable(12)
    plain.platformID, plain.platEncID, plain.language = 3, 10, 0
    plain.cmap = font.getBestCmap()
    font["cmap"].tables = [plain]


def as_ranges(codes: list[int]) -> list[tuple[int, int]]:
    """Fold sorted code points into inclusive ranges."""
    ranges: list[tuple[int, int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges


def table_source(codes: list[int]) -> str:
    """Return the text of korrigo_kit/glyphs_table.py for these code points."""
    items = [f"(0x{first:04X}, 0x{last:04X})," for first, last in as_ranges(codes)]
    lines = ["    " + " ".join(items[at : at + 5]) for at in range(0, len(items), 5)]
    return (
        '"""Code points that the font of the final PDF can draw, as inclusive ranges. Generated: do not edit.\n\n'
        'Made by korrigo_render/engine/fonts/generate.py; read by korrigo_kit.glyphs.\n"""\n\n'
        "RANGES: tuple[tuple[int, int], ...] = (\n" + "\n".join(lines) + "\n)  # fmt: skip\n"
    )


def main(folder: Path) -> None:
    """Write both subsets and the table."""
    sans, codes = make_subset(folder / "DejaVuSans.ttf", TEXT_RANGES)
    bold, _ = make_subset(folder / "DejaVuSans-Bold.ttf", BOLD_RANGES)
    (HERE / "sans.ttf").write_bytes(sans)
    (HERE / "bold.ttf").write_bytes(bold)
    TABLE.write_text(table_source(codes), encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEJAVU)
