"""The words of the final PDF in French and English, and how numbers and dates are written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

_FRENCH = {
    "title": "Relevé de notes",
    "continued": "suite",
    "copy": "Copie",
    "date": "Date",
    "score": "Note",
    "question": "Question",
    "points": "Note",
    "max": "Barème",
    "total": "Total",
    "NT": "NT",
    "nt_legend": "NT : question non traitée",
    "appreciation": "Appréciation",
    "comments": "Commentaires",
    "comments_hint": "Les numéros renvoient aux repères placés sur les pages de la copie.",
    "page": "page",
    "signature": "Correction finalisée",
    "revision": "Révision",
    "marker": "Correcteur",
    "finalized": "Finalisée le",
    "source": "SHA-256 de la copie",
    "code": "Code de vérification",
    "url": "Vérifier en ligne",
}
_ENGLISH = {
    "title": "Score report",
    "continued": "continued",
    "copy": "Script",
    "date": "Date",
    "score": "Score",
    "question": "Question",
    "points": "Score",
    "max": "Max",
    "total": "Total",
    "NT": "NT",
    "nt_legend": "NT: question not attempted",
    "appreciation": "Overall comment",
    "comments": "Comments",
    "comments_hint": "The numbers refer to the markers on the pages of the script.",
    "page": "page",
    "signature": "Marking finalised",
    "revision": "Revision",
    "marker": "Marker",
    "finalized": "Finalised on",
    "source": "SHA-256 of the script",
    "code": "Verification code",
    "url": "Verify online",
}
_MONTHS = {
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split(),
    "en": "January February March April May June July August September October November December".split(),
}


def labels(language: str) -> Mapping[str, str]:
    """Return the words for a language; anything but "en" is French."""
    return _ENGLISH if language == "en" else _FRENCH


def points(hundredths: int | None, language: str) -> str:
    """Write marks: 1450 as "14,5" in French and "14.5" in English, None as a dash."""
    if hundredths is None:
        return "–"
    whole, rest = divmod(abs(hundredths), 100)
    fraction = f"{rest:02d}".rstrip("0")
    sign = "−" if hundredths < 0 else ""
    return sign + str(whole) + (("." if language == "en" else ",") + fraction if fraction else "")


def delta(hundredths: int, language: str) -> str:
    """Write a change of marks with its sign."""
    return ("+" if hundredths > 0 else "") + points(hundredths, language)


def date(iso: str | None, language: str) -> str:
    """Write the day of an ISO date or time in words; what is not ISO is written as it is."""
    if not iso:
        return "–"
    try:
        day = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    number = "1er" if language != "en" and day.day == 1 else str(day.day)
    return f"{number} {_MONTHS['en' if language == 'en' else 'fr'][day.month - 1]} {day.year}"


def moment(iso: str, language: str) -> str:
    """Write an ISO time with its own offset: never converted, so that the bytes depend on the manifest only."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    offset = at.utcoffset()
    zone = "" if offset is None else " UTC" if offset == timedelta(0) else f" UTC{at.isoformat()[-6:]}"
    between = " at " if language == "en" else " à "
    return f"{date(iso, language)}{between}{at:%H:%M}{zone}"
