"""/metrics as a test reads it: (name, labels) -> number, and the contract of operations.md 1 as a list."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]

WORK = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
HTTP = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)

# name: (type, labels, buckets)
CONTRACT: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "grading_import_duration_seconds": ("histogram", ("status", "pages_bucket"), WORK),
    "grading_finalize_duration_seconds": ("histogram", ("status", "retry_attempt"), WORK),
    "grading_ocr_errors_total": ("counter", ("error_type",), ()),
    "grading_lock_conflicts_total": ("counter", ("conflict_type",), ()),
    "grading_copies_by_status": ("gauge", ("status",), ()),
    "http_request_duration_seconds": ("histogram", ("method", "path", "status"), HTTP),
    "http_requests_total": ("counter", ("method", "path", "status"), ()),
    "grading_stuck_copies": ("gauge", ("stage", "reason"), ()),
    "grading_oldest_copy_age_seconds": ("gauge", ("status",), ()),
    "grading_copies_retries_exhausted": ("gauge", (), ()),
    "grading_locks": ("gauge", ("state",), ()),
    "grading_audit_missing_events": ("gauge", ("action",), ()),
    "grading_audit_chain_valid": ("gauge", (), ()),
    "grading_audit_outbox_oldest_seconds": ("gauge", (), ()),
    "broker_queue_messages": ("gauge", ("queue", "state"), ()),
    "broker_queue_oldest_seconds": ("gauge", ("queue",), ()),
    "grading_jobs": ("gauge", ("kind", "state"), ()),
    "grading_workers_ready": ("gauge", ("queue",), ()),
    "grading_db_up": ("gauge", (), ()),
    "grading_broker_up": ("gauge", (), ()),
    "grading_db_connections": ("gauge", ("state",), ()),
    "grading_db_connections_max": ("gauge", (), ()),
    "grading_db_blocked_queries": ("gauge", (), ()),
    "grading_storage_available_bytes": ("gauge", ("volume",), ()),
    "grading_storage_size_bytes": ("gauge", ("volume",), ()),
    "grading_temp_upload_bytes": ("gauge", (), ()),
    "grading_sweep_last_success_timestamp_seconds": ("gauge", (), ()),
    "grading_backup_last_success_timestamp_seconds": ("gauge", (), ()),
    "grading_operator_actions_total": ("counter", ("action",), ()),
    "grading_interventions_total": ("counter", ("result",), ()),
    "grading_object_store_errors_total": ("counter", ("operation",), ()),
    "grading_login_failures_total": ("counter", (), ()),
    "grading_db_oldest_query_seconds": ("gauge", (), ()),
    "grading_memory_available_bytes": ("gauge", (), ()),
    "korrigo_build_info": ("gauge", ("version", "python"), ()),
}
# Of the operator, which serves nothing else.
OPERATOR: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "korrigo_operator_sweep_duration_seconds": ("histogram", ("result",), WORK),
    "korrigo_operator_acts_total": ("counter", ("action", "result"), ()),
    "korrigo_operator_last_sweep_timestamp_seconds": ("gauge", (), ()),
    "korrigo_operator_stuck_copies": ("gauge", ("phase",), ()),
    "korrigo_operator_circuit_open": ("gauge", (), ()),
    "korrigo_operator_leading": ("gauge", (), ()),
}


class Scrape:
    """One answer of /metrics; a series that is told twice is an error."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.numbers: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            # The parser takes _total off the names of counters.
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert name not in self.types, f"{name} is told twice"
            self.types[name] = family.type
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    series = (sample.name, frozenset(sample.labels.items()))
                    assert series not in self.numbers, f"{series} is told twice"
                    self.numbers[series] = sample.value

    def get(self, name: str, **labels: str) -> float:
        """Return the number of exactly this series; KeyError when it is not there."""
        return self.numbers[name, frozenset(labels.items())]

    def of(self, name: str) -> Mapping[frozenset[tuple[str, str]], float]:
        """Return every series of a name."""
        return {labels: number for (found, labels), number in self.numbers.items() if found == name}

    def total(self, name: str) -> float:
        """Sum up every series of a name."""
        return sum(self.of(name).values())

    def counts(self) -> dict[Series, float]:
        """Return what may only grow, whoever dies: our counters, and the counts of histograms."""
        kinds = {name: kind for name, kind in self.types.items() if not name.startswith(("process_", "python_"))}
        return {
            (name, labels): number
            for (name, labels), number in self.numbers.items()
            if kinds.get(name) == "counter" or kinds.get(name.removesuffix("_count")) == "histogram"
        }
