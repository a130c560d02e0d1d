"""`korrigo bench`: what this machine does in a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from korrigo.benchmark import Figures

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def bench(
    copies: Annotated[int, typer.Option(help="copies that are imported, marked and finalised", min=2)] = 30,
    pages: Annotated[int, typer.Option(help="pages of a copy", min=1)] = 4,
    markers: Annotated[int, typer.Option(help="markers at work at once, none of whom pauses", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on the last line")] = False,
) -> None:
    """Measure imports, requests and final PDFs on a scratch instance; no running instance is touched.

    Run it on a machine that does nothing else. Example: korrigo bench --copies 60
    """
    from korrigo.benchmark import measure

    figures = measure(copies, pages, markers, lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps(figures.document()) if as_json else "\n".join(_lines(figures)))


def _lines(found: Figures) -> list[str]:
    rows = [
        ("FIGURE", "HERE", "WITH NOTHING AROUND", "RATIO", "OF"),
        ("start until ready", f"{found.ready_seconds:.1f} s", "", "", "a new home"),
        (
            "import",
            f"{found.import_pages_per_second:.1f} pages/s",
            f"{found.engine_alone_pages_per_second:.1f} pages/s",
            f"{found.import_ratio:.2f}",
            f"{found.pages} pages; beside it the engine in one process",
        ),
        (
            "a marker's request, median",
            f"{found.request_ms_p50:.1f} ms",
            f"{found.answer_alone_ms_p50:.1f} ms",
            f"{found.request_ratio:.1f}",
            f"{found.requests} requests; beside it an answer that asks nobody",
        ),
        ("a marker's request, 95 %", f"{found.request_ms_p95:.1f} ms", "", "", ""),
        ("final PDFs", f"{found.finals_per_second:.2f} /s", "", "", f"{found.finals} copies, while they are marked"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
