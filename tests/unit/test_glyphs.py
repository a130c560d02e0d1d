"""The table of drawable characters matches the font that is shipped, and says what may be stored."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fontTools.ttLib import TTFont

from korrigo_kit import glyphs, glyphs_table

ENGINE = Path(__file__).resolve().parents[2] / "services" / "render" / "korrigo_render" / "engine"
DEJAVU = Path("/usr/share/fonts/truetype/dejavu")


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_fonts", ENGINE / "fonts" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_shipped_font_covers() -> None:
    font = TTFont(ENGINE / "fonts" / "sans.ttf")
    codes = sorted(font.getBestCmap())
    assert list(glyphs_table.RANGES) == _generator().as_ranges(codes)
    assert Path(glyphs_table.__file__).read_text() == _generator().table_source(codes)


@pytest.mark.allowed_skip("the fonts that the subsets are made from are a Debian package")
@pytest.mark.skipif(not (DEJAVU / "DejaVuSans.ttf").exists(), reason="fonts-dejavu-core is not installed")
@pytest.mark.parametrize(("name", "shipped"), [("DejaVuSans.ttf", "sans.ttf"), ("DejaVuSans-Bold.ttf", "bold.ttf")])
def test_the_shipped_fonts_are_what_the_generator_makes(name: str, shipped: str) -> None:
    generator = _generator()
    ranges = generator.TEXT_RANGES if shipped == "sans.ttf" else generator.BOLD_RANGES
    made, _ = generator.make_subset(DEJAVU / name, ranges)
    assert made == (ENGINE / "fonts" / shipped).read_bytes()


def test_every_covered_character_has_a_glyph_of_its_own() -> None:
    font = TTFont(ENGINE / "fonts" / "sans.ttf")
    assert ".notdef" not in font.getBestCmap().values()
    assert not any(font["glyf"][name].isComposite() for name in font.getGlyphOrder())


def test_what_the_contract_names_is_covered() -> None:
    latin = "".join(chr(c) for c in [*range(0x20, 0x7F), *range(0xA0, 0x180)])
    greek = "αβγδεζηθικλμνξοπρσςτυφχψωΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ"
    assert glyphs.unsupported(latin + greek + "œŒ ≤ ≥ ≠ ∞ √ → × ÷ ± ∈ ∉ ∀ ∃ ⇒ ⇔ ∫ ∑ ∂ ℝ ℕ xᵢ uₙ x̄ ✓ ✗ ½ €") == []
    assert glyphs.unsupported("deux\nlignes\tet une tabulation\r\n") == []
    assert glyphs.unsupported("espaces\u00a0fines\u202fet guillemets « ainsi »") == []


def test_what_cannot_be_drawn_is_named_once_in_order() -> None:
    assert glyphs.unsupported("\U0001f600 bravo 漢 \U0001f600\x07") == ["\U0001f600", "漢", "\x07"]
    assert glyphs.describe("\U0001f600") == "U+1F600 GRINNING FACE"
    assert glyphs.describe("\x07") == "U+0007 without a name"


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200f", "\u2028", "\x00", "\ud800"])
def test_what_could_make_a_text_read_otherwise_is_refused(character: str) -> None:
    assert glyphs.unsupported(f"a{character}b") == [character]


def test_text_is_composed_and_leftovers_of_copying_are_dropped() -> None:
    assert glyphs.normalise("e\u0301te\u0301\u200b\ufeff in\u00adfini\r\nfin\r") == "été infini\nfin\n"
    assert glyphs.unsupported("e\u0301\u00ad\u200b ✓\ufe0f") == []
