"""The checker outside the system: compares a `Ledger` with what the product answers, by HTTP, CLI and final PDFs.

Every check returns sentences about what is wrong; an empty list means that nothing was lost or doubled.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdfium2

from harness.client import Client, Refused
from harness.instance import Instance
from harness.ledger import CopyEntry, Ledger, UploadEntry
from harness.processes import NotReady, wait_for

Json = dict[str, Any]
ORDER = ("IMPORT", "VALIDATE", "LOCK", "CREATE_ANN", "FINALIZE")


def check(ledger: Ledger, client: Client, instance: Instance, *, expected_copies: int) -> list[str]:
    """Compare everything; returns the list of what does not hold."""
    wrong: list[str] = []
    copy_ids: list[str] = []
    scan_of: dict[str, UploadEntry] = {}
    for upload in ledger.uploads:
        scan = client.scan(upload.scan_id)
        wrong += check_scan(upload, scan)
        copy_ids += scan["copy_ids"]
        scan_of |= dict.fromkeys(scan["copy_ids"], upload)
    doubled = [copy_id for copy_id, count in Counter(copy_ids).items() if count > 1]
    if doubled:
        wrong.append(f"copies named by two scans: {doubled}")
    if len(copy_ids) != expected_copies:
        wrong.append(f"{len(copy_ids)} copies exist, {expected_copies} were uploaded")
    wrong += _check_lists(ledger, client, copy_ids)
    for copy_id in copy_ids:
        entry = ledger.copies.get(copy_id)
        if entry is None:
            wrong.append(f"copy {copy_id} was never worked on")
            continue
        found = [*check_copy(entry, scan_of[copy_id], client), *check_audit(entry, client)]
        wrong += [f"copy {copy_id}: {text}" for text in found]
    verified = instance.cli("audit", "verify", "--json")
    if verified.returncode != 0:
        wrong.append(f"audit verify: exit {verified.returncode} {verified.stdout[-600:]}{verified.stderr[-600:]}")
    return wrong


def check_scan(upload: UploadEntry, scan: Json) -> Iterator[str]:
    """A scan is DONE, has its copies, and accounts for each half-page."""
    name = f"scan {upload.scan_id}"
    if scan["state"] != "DONE":
        yield f"{name} is {scan['state']}: {scan['error']} {scan['anomalies']}"
    if len(scan["copy_ids"]) != upload.copies:
        yield f"{name} has {len(scan['copy_ids'])} copies, {upload.copies} expected"
    if scan["pages"] != upload.source_pages:
        yield f"{name} has {scan['pages']} pages, {upload.source_pages} expected"
    yield from conservation(scan, upload.half_pages, name)


def conservation(scan: Json, half_pages: int, name: str = "scan") -> Iterator[str]:
    """placed + blank + discarded + unassigned = half_pages (contract.md)."""
    parts = scan["conservation"]
    if parts["half_pages"] != half_pages:
        yield f"{name}: conservation counts {parts['half_pages']} half-pages, the source has {half_pages}"
    total = parts["placed"] + parts["blank"] + parts["discarded"] + parts["unassigned"]
    if total != parts["half_pages"]:
        yield f"{name}: {parts} does not add up"
    if parts["discarded"]:
        yield f"{name}: {parts['discarded']} half-pages were discarded by nobody"


def _check_lists(ledger: Ledger, client: Client, copy_ids: list[str]) -> Iterator[str]:
    listed = [copy["id"] for exam_id in sorted({u.exam_id for u in ledger.uploads}) for copy in client.copies(exam_id)]
    if Counter(listed) != Counter(copy_ids):
        lost, extra = set(copy_ids) - set(listed), set(listed) - set(copy_ids)
        yield f"exam lists differ from the scans' copies: missing {sorted(lost)}, unknown {sorted(extra)}"


def check_copy(entry: CopyEntry, upload: UploadEntry, client: Client) -> Iterator[str]:
    """A copy is GRADED with the acknowledged score and annotations, and its final PDF holds them."""
    copy = client.copy(entry.copy_id)
    if copy["status"] != "GRADED":
        yield f"is {copy['status']}: {copy['grading_error_message']}"
        return
    if entry.scores is not None and abs(copy["final_score"] - sum(entry.scores.values())) > 0.001:
        yield f"final_score {copy['final_score']} but {sum(entry.scores.values())} was acknowledged"
    if entry.fences != sorted(set(entry.fences)) and entry.fences != sorted(entry.fences):
        yield f"fences went back: {entry.fences}"
    yield from check_annotations(entry, client)
    yield from check_final_pdf(entry, upload, len(copy["pages"]), client)


def check_annotations(entry: CopyEntry, client: Client) -> Iterator[str]:
    """Every acknowledged annotation is there with its content; nothing else is."""
    found = {a["id"]: a for a in client.annotations(entry.copy_id)}
    for annotation in entry.annotations.values():
        current = found.pop(annotation.annotation_id, None)
        if annotation.is_deleted:
            if current is not None:
                yield f"annotation {annotation.annotation_id} was deleted and is back"
        elif annotation.is_acked and current is None and not annotation.is_delete_sent:
            yield f"acknowledged annotation {annotation.annotation_id} is lost"
        elif annotation.is_acked and current is not None:
            if current["version"] < annotation.version:
                yield f"annotation {annotation.annotation_id} went back to version {current['version']}"
            if current["version"] == annotation.version and current["content"] != annotation.content:
                yield f"annotation {annotation.annotation_id} holds {current['content']!r}"
    if found:
        yield f"annotations that nobody made: {sorted(found)}"


def check_final_pdf(entry: CopyEntry, upload: UploadEntry, pages: int, client: Client) -> Iterator[str]:
    """The final PDF opens, is what its ETag says, has every source page and a score page, and the texts."""
    response = client.final_pdf(entry.copy_id)
    digest = hashlib.sha256(response.content).hexdigest()
    if response.headers.get("ETag", "").strip('"') != digest:
        yield f"final PDF's ETag {response.headers.get('ETag')} is not its sha256"
    if upload.is_one_copy and not response.content.startswith(upload.path.read_bytes()):
        yield "the uploaded bytes are not the prefix of the final PDF"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "final.pdf"
        path.write_bytes(response.content)
        with pypdfium2.PdfDocument(path) as document:
            if len(document) <= pages:
                yield f"final PDF has {len(document)} pages for {pages} source pages and a score page"
        checked = subprocess.run(["qpdf", "--check", path], capture_output=True, text=True, check=False)
        if checked.returncode != 0:
            yield f"qpdf --check: {checked.stdout[-300:]}{checked.stderr[-300:]}"
        text = pdf_text(path)
    for annotation in entry.annotations.values():
        is_kept = annotation.is_acked and not annotation.is_delete_sent
        if is_kept and annotation.content not in text:
            yield f"final PDF lacks {annotation.content!r}"
        if annotation.is_deleted and annotation.content in text:
            yield f"final PDF shows the deleted {annotation.content!r}"


def pdf_text(path: Path) -> str:
    """Extract the text with poppler, white space collapsed."""
    done = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def check_audit(entry: CopyEntry, client: Client) -> Iterator[str]:
    """One FINALIZE success per revision, one CREATE_ANN per annotation, in the documented order."""
    try:
        events = wait_for("the audit's FINALIZE", lambda: _with_success(client.audit(entry.copy_id)), seconds=30)
    except (NotReady, Refused) as error:
        yield f"audit: {error}"
        return
    numbers = [event["seq"] for event in events]
    if numbers != sorted(set(numbers)):
        yield f"audit seq is not increasing: {numbers}"
    actions = [event["action"] for event in events]
    first = [actions.index(action) for action in ORDER if action in actions]
    if first != sorted(first) or not {"IMPORT", "VALIDATE", "LOCK", "FINALIZE"} <= set(actions):
        yield f"audit order: {actions}"
    for action in ("IMPORT", "VALIDATE"):
        if actions.count(action) > 1:
            yield f"audit holds {action} {actions.count(action)} times"
    done = Counter(e["metadata"].get("revision") for e in events if _is_success(e))
    if any(count != 1 for count in done.values()):
        yield f"FINALIZE success per revision: {dict(done)}"
    created = Counter(e["metadata"]["annotation_id"] for e in events if e["action"] == "CREATE_ANN")
    acked = {a.annotation_id for a in entry.annotations.values() if a.is_acked}
    known = {a.annotation_id for a in entry.annotations.values()}
    if any(count > 1 for count in created.values()) or not acked <= set(created) <= known:
        yield f"CREATE_ANN {dict(created)} but acknowledged {sorted(acked)}"
    changed = sum(event["action"] == "UPDATE_ANN" for event in events)
    wanted = sum(max(0, a.version - 1) for a in entry.annotations.values() if a.is_acked)
    if changed < wanted:
        yield f"{changed} UPDATE_ANN events for {wanted} acknowledged changes"


def _is_success(event: Json) -> bool:
    return event["action"] == "FINALIZE" and event["metadata"].get("success") is True


def _with_success(events: list[Json]) -> list[Json] | None:
    return events if any(_is_success(event) for event in events) else None
