"""`korrigo rebuild_index`: the read models of ingest anew from grading's events."""

from __future__ import annotations

import typer

from korrigo.operating import ActAs, AsJson, DryRun, operation, tell

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def rebuild_index(dry_run: DryRun = False, act_as: ActAs = None, as_json: AsJson = False) -> None:
    """Apply again what grading last told of every exam and copy; readers see no hole. Example: korrigo rebuild_index"""
    with operation("ingest", "grading", act_as=act_as) as at:
        from korrigo_grading.flows import retelling
        from korrigo_ingest.flows import rebuilding

        retold, applied = (0, 0), 0
        if not dry_run:
            retold = retelling.retell(at["grading"], at.actor_id)
            applied = rebuilding.rebuild(at["ingest"], at.actor_id)
        exams, copies = rebuilding.known(at["ingest"])
    tell(
        as_json,
        {"dry_run": dry_run, "applied": applied, "retold": sum(retold), "exams": exams, "copies": copies},
        f"{applied} events applied again; the read models hold {exams} exams and {copies} copies",
    )
