"""gRPC: servers and channels with the same rules on both sides.

Every call has a deadline (a server refuses one without), carries the request id and the trace, and is signed for
the called room. References travel, never bytes: messages are at most 1 MiB. Errors cross as status + `reason` in
the trailing metadata and come out as the same class of `kit.errors`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from korrigo_kit import context, inbox, outbox, references
from korrigo_kit.auth import PeerTokens, Principal
from korrigo_kit.db import Database
from korrigo_kit.errors import Bug, Invalid, KorrigoError, Unavailable, classes
from korrigo_kit.settings import RpcSettings
from korrigo_kit.telemetry import traces
from korrigo_protos.common.v1 import event_pb2, event_pb2_grpc

log = logging.getLogger("korrigo.rpc")

MAX_MESSAGE_BYTES = 1 << 20
_THREADS = 16
_OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.")
_BY_STATUS = {cls.grpc_status: cls for cls in reversed(classes())}
Stub = TypeVar("Stub")
if TYPE_CHECKING:
    # Generic in the stubs only.
    _Handler = grpc.RpcMethodHandler[Any, Any]

_caller: threading.local = threading.local()


def caller() -> Principal | None:
    """Return the person on whose behalf the current call was made, None when a room calls for itself."""
    return getattr(_caller, "person", None)


class _ServerInterceptor(grpc.ServerInterceptor):
    """Request id, deadline, authentication, and error mapping of every unary call."""

    def __init__(self, tokens: PeerTokens, service: str) -> None:
        self._tokens = tokens
        self._service = service

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], _Handler | None], details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        handler = continuation(details)
        if handler is None or handler.unary_unary is None or details.method.startswith(_OPEN_METHODS):
            return handler
        inner = handler.unary_unary
        metadata = {str(key): str(value) for key, value in details.invocation_metadata or ()}
        method = details.method

        def serve(request: Any, call: grpc.ServicerContext) -> Any:
            with (
                context.bind(
                    service=self._service,
                    request_id=context.accept_request_id(metadata.get("x-request-id")),
                    traceparent=traces.accept(metadata.get("traceparent")),
                ),
                traces.span(method),
            ):
                return self._answer(inner, request, call, metadata, method)

        return grpc.unary_unary_rpc_method_handler(
            serve, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _answer(
        self, inner: Callable[..., Any], request: Any, call: grpc.ServicerContext, metadata: dict[str, str], method: str
    ) -> Any:
        try:
            if call.time_remaining() is None:
                raise Invalid("DEADLINE_REQUIRED", "every call between rooms has a deadline")
            room, person = self._tokens.accept(metadata.get("authorization", "").removeprefix("Bearer "))
            _caller.person = person
            answer = inner(request, call)
            level = logging.DEBUG if method.endswith("/ListHeads") else logging.INFO  # asked every few seconds
            log.log(level, "grpc %s from %s", method, room, extra={"path": method})
            return answer
        except KorrigoError as error:
            _abort(call, error)
        except Exception as error:
            log.exception("grpc %s failed", method, extra={"path": method})
            _abort(call, Bug("BUG", type(error).__name__))
        finally:
            _caller.person = None


def _abort(call: grpc.ServicerContext, error: KorrigoError) -> None:
    call.set_trailing_metadata((("reason", error.reason), ("http-status", str(error.status))))
    call.abort(getattr(grpc.StatusCode, error.grpc_status), error.message)


class _Outbox(event_pb2_grpc.OutboxServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    def ListHeads(
        self, request: event_pb2.ListHeadsRequest, context: grpc.ServicerContext
    ) -> event_pb2.ListHeadsResponse:
        found = outbox.heads(
            self._database,
            since_ms=request.since_ms,
            after=request.page_token,
            types=request.types,
            limit=min(request.page_size or 500, 2000),
        )
        return event_pb2.ListHeadsResponse(heads=found.heads, next_page_token=found.next_token, now_ms=found.now_ms)

    def FetchEvents(
        self, request: event_pb2.FetchEventsRequest, context: grpc.ServicerContext
    ) -> event_pb2.FetchEventsResponse:
        stream = (request.stream.subject_type, request.stream.subject_id)
        events = outbox.fetch(
            self._database,
            subject=stream,
            from_seq=request.from_seq,
            types=request.types,
            limit=min(request.limit or 100, 100),
        )
        return event_pb2.FetchEventsResponse(events=_fitting(events))


def _fitting(events: Iterable[event_pb2.Event]) -> list[event_pb2.Event]:
    """Keep as many events as one message holds; the caller asks on from the last."""
    kept: list[event_pb2.Event] = []
    size = 0
    for event in events:
        size += event.ByteSize() + 16
        if kept and size > MAX_MESSAGE_BYTES - 4096:
            break
        kept.append(event)
    return kept


class _BlobRefs(event_pb2_grpc.BlobRefServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    def FilterReferenced(
        self, request: event_pb2.FilterReferencedRequest, context: grpc.ServicerContext
    ) -> event_pb2.FilterReferencedResponse:
        return event_pb2.FilterReferencedResponse(sha256=references.referenced(self._database, request.sha256[:1000]))


class RpcServer:
    """The gRPC server of one room: its own servicers, the outbox's, the blob references' and health."""

    def __init__(
        self,
        room: str,
        settings: RpcSettings,
        database: Database,
        servicers: Sequence[Callable[[grpc.Server], None]],
    ) -> None:
        tokens = PeerTokens(settings, room)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix=f"rpc-{room}"),
            interceptors=[_ServerInterceptor(tokens, room)],
            # Beyond this many calls the room sheds load (RESOURCE_EXHAUSTED) instead of queueing.
            maximum_concurrent_rpcs=_THREADS * 8,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                # Callers come back after 5 minutes, so that new replicas get their share.
                ("grpc.max_connection_age_ms", 300_000),
                ("grpc.max_connection_age_grace_ms", 30_000),
            ],
        )
        event_pb2_grpc.add_OutboxServiceServicer_to_server(_Outbox(database), self._server)
        event_pb2_grpc.add_BlobRefServiceServicer_to_server(_BlobRefs(database), self._server)
        for add in servicers:
            add(self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            self._reflect()
        address = settings.listen or getattr(settings, room)
        if not address:
            raise Unavailable("RPC_ADDRESS_MISSING", f"KORRIGO_RPC__{room.upper()} names no address")
        self._server.add_insecure_port(address)

    def _reflect(self) -> None:
        from grpc_reflection.v1alpha import reflection

        names = [method.split("/")[0] for method in ("grpc.health.v1.Health",)]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_seconds: float = 5) -> None:
        """Say NOT_SERVING, let running calls end, stop."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()


class _ClientInterceptor(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, tokens: PeerTokens, peer: str, deadline_seconds: float) -> None:
        self._tokens = tokens
        self._peer = peer
        self._deadline_seconds = deadline_seconds

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        person = context.get("principal")
        token = self._tokens.issue(self._peer, person if isinstance(person, Principal) else None)
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {token}")]
        for key, name in (("x-request-id", "request_id"), ("traceparent", "traceparent")):
            value = context.get(name)
            if value:
                metadata.append((key, value))
        timeout = details.timeout or self._deadline_seconds
        return continuation(_Details(details.method, timeout, metadata), request)


class _Details(grpc.ClientCallDetails):
    def __init__(self, method: str, timeout: float, metadata: list[tuple[str, str]]) -> None:
        self.method = method
        self.timeout = timeout
        self.metadata = tuple(metadata)
        self.credentials = None
        self.wait_for_ready = None
        self.compression = None


class Channels(inbox.Peer):
    """The channels of one room to its peers, opened when first used and kept."""

    def __init__(self, settings: RpcSettings, room: str) -> None:
        self._settings = settings
        self._tokens = PeerTokens(settings, room)
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}

    def stub(self, peer: str, factory: Callable[[grpc.Channel], Stub]) -> Stub:
        """Return a stub of a peer's service; call it inside `asking(peer)`."""
        with self._lock:
            if peer not in self._channels:
                address = getattr(self._settings, peer)
                if not address:
                    raise Unavailable("RPC_ADDRESS_MISSING", f"KORRIGO_RPC__{peer.upper()} names no address")
                channel = grpc.insecure_channel(
                    address,
                    options=[
                        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                        ("grpc.initial_reconnect_backoff_ms", 200),
                        ("grpc.min_reconnect_backoff_ms", 200),
                        ("grpc.max_reconnect_backoff_ms", 2000),
                    ],
                )
                interceptor = _ClientInterceptor(self._tokens, peer, self._settings.deadline_seconds)
                self._channels[peer] = grpc.intercept_channel(channel, interceptor)
            return factory(self._channels[peer])

    @contextmanager
    def asking(self, peer: str) -> Iterator[None]:
        """Turn a failed call to a peer into the class of `kit.errors` that the peer raised."""
        try:
            yield
        except grpc.RpcError as error:
            raise _known(peer, error) from error

    def is_serving(self, peer: str) -> bool:
        """Ask a peer's health service, one second at most."""
        try:
            answer = self.stub(peer, health_pb2_grpc.HealthStub).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except (grpc.RpcError, Unavailable):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def heads(self, source: str, since_ms: int, page: str, types: Iterable[str]) -> event_pb2.ListHeadsResponse:
        request = event_pb2.ListHeadsRequest(since_ms=since_ms, page_token=page, types=list(types))
        with self.asking(source):
            return self.stub(source, event_pb2_grpc.OutboxServiceStub).ListHeads(request)

    def fetch(
        self, source: str, stream: event_pb2.Stream, from_seq: int, types: Iterable[str]
    ) -> list[event_pb2.Event]:
        request = event_pb2.FetchEventsRequest(stream=stream, from_seq=from_seq, types=list(types))
        with self.asking(source):
            return list(self.stub(source, event_pb2_grpc.OutboxServiceStub).FetchEvents(request).events)

    def close(self) -> None:
        """Close every channel."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()


def _known(peer: str, error: grpc.RpcError) -> KorrigoError:
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    trailing: dict[str, str | bytes] = dict(error.trailing_metadata() or ()) if isinstance(error, grpc.Call) else {}
    cls = _BY_STATUS.get(code.name, Bug)
    reason = trailing.get("reason")
    if reason is None:
        return cls(f"{peer.upper()}_{code.name}", f"{peer} did not answer")
    status = trailing.get("http-status")
    message = error.details() if isinstance(error, grpc.Call) else ""
    return cls(str(reason), message or "", status=int(str(status)) if status else None)
