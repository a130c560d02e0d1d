"""One request id through everything: REST, gRPC, worker, audit, and the audit record itself."""

from __future__ import annotations

import secrets
from pathlib import Path

from harness.client import Client
from harness.instance import Instance
from harness.pdfs import Label, a4_scan
from harness.processes import wait_for


def test_one_upload_is_found_under_its_request_id_everywhere(instance: Instance, admin: Client, tmp_path: Path) -> None:
    request_id = f"trace-{secrets.token_hex(8)}"
    exam = admin.create_exam("Traced")
    path = a4_scan(tmp_path / "a.pdf", [Label(80, 1, 1)])
    scan = admin.wait_scan(admin.upload(exam["id"], path, request_id=request_id)["scan_id"])
    copy_id = scan["copy_ids"][0]
    imported = next(e for e in admin.wait_audit(copy_id, "IMPORT") if e["action"] == "IMPORT")
    assert imported["request_id"] == request_id

    def complete() -> bool:
        lines = [line for line in instance.log_lines() if line.get("request_id") == request_id]
        services = {str(line["service"]) for line in lines}
        files = {str(line["_file"]) for line in lines}
        is_rpc = any("rpc" in str(line["logger"]) and line["service"] == "grading" for line in lines)
        is_worker = any("work" in name for name in files)
        missing = {"ingest", "grading", "audit"} - services
        assert not missing and is_rpc and is_worker, f"{missing=} {is_rpc=} {files=}"
        return True

    wait_for(f"log lines of request {request_id}", complete, seconds=20)


def test_log_lines_have_the_documented_fields_and_no_names(instance: Instance, admin: Client) -> None:
    admin.send("GET", "/api/me")
    lines = [line for line in instance.log_lines() if "timestamp" in line and "logger" in line]
    assert lines
    for line in lines:
        assert {"timestamp", "level", "logger", "service", "message", "module", "function", "line"} <= set(line), line
        assert instance.admin_password not in str(line)
    texts = "\n".join(str(line) for line in lines)
    assert "Zoé" not in texts and "Bearer " not in texts
