"""gRPC face of audit: verification, and the acts of healing that are audit's (kit.interventions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import grpc

from korrigo_audit.flows import append, completeness
from korrigo_audit.flows.verification import verify
from korrigo_kit.interventions import Deed, Item, Order, Verb
from korrigo_kit.room import Runtime
from korrigo_protos.audit.v1 import audit_pb2, audit_pb2_grpc


class AuditService(audit_pb2_grpc.AuditServiceServicer):
    """Verification for operators and other rooms."""

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt

    def Verify(self, request: audit_pb2.VerifyRequest, context: grpc.ServicerContext) -> audit_pb2.VerifyResponse:
        """Check one stream, or all of them."""
        subject = (request.subject_type, request.subject_id) if request.subject_id else None
        verdict = verify(self._rt, subject)
        return audit_pb2.VerifyResponse(
            is_valid=verdict.is_valid,
            records=verdict.records,
            streams=verdict.streams,
            findings=[
                audit_pb2.Finding(
                    code=finding.code,
                    subject_type=finding.subject_type,
                    subject_id=finding.subject_id,
                    source=finding.source,
                    source_seq=finding.source_seq,
                )
                for finding in verdict.findings
            ],
        )

    def CountMissing(
        self, request: audit_pb2.CountMissingRequest, context: grpc.ServicerContext
    ) -> audit_pb2.CountMissingResponse:
        """Count what the memory lacks, as the metric does."""
        counted = completeness.missing(self._rt)
        return audit_pb2.CountMissingResponse(
            counts=[
                audit_pb2.MissingCount(action=action, events=number)
                for action, number in sorted(counted.items())
                if number
            ]
        )


def verbs(rt: Runtime) -> Mapping[str, Verb]:
    """Tell how audit heals: it verifies, and stores again what its sources still hold."""
    kinds = ("copy", "exam", "scan", "all")
    return {
        "VerifyAudit": Verb(kinds, _scope, partial(_verify, rt)),
        # Whatever is stored into the memory after the fact, two people answer for.
        "RecreateAuditEvent": Verb(kinds, partial(_missing, rt), partial(_put_back, rt), lambda _, items: bool(items)),
    }


def _scope(order: Order) -> Sequence[Item]:
    return [Item(*order.subject, what="would be verified")]


def _verify(rt: Runtime, order: Order, item: Item) -> Deed:
    verdict = verify(rt, None if order.kind == "all" else (item.subject_type, item.subject_id))
    text = f"{verdict.records} records in {verdict.streams} streams: " + ("valid" if verdict.is_valid else "")
    shown = [f"{at.code} {at.subject_type} {at.subject_id} {at.source} {at.source_seq}" for at in verdict.findings[:5]]
    if shown:
        text += f"{len(verdict.findings)} findings: {'; '.join(shown)}"
    if verdict.unreachable:
        text += f"; unchecked, for they did not answer: {', '.join(verdict.unreachable)}"
    return Deed(True, text, len(verdict.findings))


def _missing(rt: Runtime, order: Order) -> Sequence[Item]:
    found = append.missing(rt, None if order.kind == "all" else order.subject)
    return [
        Item(
            gap.stream.subject_type,
            gap.stream.subject_id,
            f"{gap.source}:{gap.source_seq}",
            f"{gap.source} {gap.source_seq} would be stored again"
            if gap.is_kept
            else f"{gap.source} {gap.source_seq} is no longer kept by its source",
        )
        for gap in found
    ]


def _put_back(rt: Runtime, order: Order, item: Item) -> Deed:
    source, _, number = item.mark.partition(":")
    is_kept = append.put_back(rt, source, (item.subject_type, item.subject_id), int(number))
    if is_kept:
        return Deed(True, f"{source} {number} is stored")
    return Deed(False, f"{source} no longer keeps {number}: it can only come from a backup")
