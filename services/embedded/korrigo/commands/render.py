"""`korrigo render COPY --out FILE`: make a final PDF outside any job, to see what render would say."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from korrigo.operating import AsJson, operation, tell
from korrigo_kit.errors import Unavailable

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def render(
    copy: Annotated[UUID, typer.Argument(help="id of the copy")],
    out: Annotated[Path, typer.Option(help="where to write the PDF; it shows the identity zone")],
    as_json: AsJson = False,
) -> None:
    """Make and verify the PDF of a copy's newest request, or of its marking as it is now; stores and tells nothing.

    Exit code 5 names why it cannot be made. Example: korrigo render 0197… --out copy.pdf
    """
    with operation("grading", "render") as at:
        from korrigo_grading.flows import finalize
        from korrigo_kit.scratch import scratch_folder
        from korrigo_render.flows import rendering

        manifest = finalize.manifest_of(at["grading"], str(copy))
        with scratch_folder("render") as folder:
            made = rendering.try_out(at["render"], manifest, Path(folder))
            sha256 = hashlib.sha256((Path(folder) / "final.pdf").read_bytes()).hexdigest()
            _write(Path(folder) / "final.pdf", out)
    tell(
        as_json,
        {"copy_id": str(copy), "file": str(out), "pages": made["pages"], "sha256": sha256},
        f"{out}: {made['pages']} pages, sha256 {sha256}",
    )


def _write(made: Path, out: Path) -> None:
    try:
        shutil.copyfile(made, out)
        out.chmod(0o600)  # a name may stand on it
    except OSError as error:
        raise Unavailable("FILE_NOT_WRITABLE", f"cannot write {out}: {error.strerror}") from error
