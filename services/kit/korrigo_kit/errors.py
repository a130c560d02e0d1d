"""The one error table: class -> gRPC status -> HTTP status -> reason.

Every layer raises these; `kit.rest` and `kit.rpc` are the only places that turn them into wire form.
Retryability is a property of the class (house.md, Conventions).

    KorrigoError
    ├── Invalid          INVALID_ARGUMENT     422   never retried
    │   └── Unparsable   INVALID_ARGUMENT     400
    ├── Unauthenticated  UNAUTHENTICATED      401
    ├── Forbidden        PERMISSION_DENIED    403
    ├── NotFound         NOT_FOUND            404
    ├── StateConflict    FAILED_PRECONDITION  409
    │   └── AlreadyExists  ALREADY_EXISTS     409
    ├── Gone             NOT_FOUND            410
    ├── Stale            ABORTED              412   (428 PRECONDITION_REQUIRED without If-Match)
    ├── TooLarge         INVALID_ARGUMENT     413
    ├── Unsupported      INVALID_ARGUMENT     415
    ├── Exhausted        RESOURCE_EXHAUSTED   429   retried   (507 when the disk is full)
    ├── Timeout          DEADLINE_EXCEEDED    504   retried
    ├── Unavailable      UNAVAILABLE          503   retried, Retry-After
    └── Bug              INTERNAL             500   retried by jobs, three times
"""

from __future__ import annotations

from typing import Any, ClassVar


class KorrigoError(Exception):
    """Base of every error with a public reason; `message` must be safe to show, metadata too."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    is_retryable: ClassVar[bool] = False

    def __init__(self, reason: str, message: str, *, status: int | None = None, **metadata: Any) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.status = status if status is not None else self.http_status
        self.metadata: dict[str, Any] = metadata


class Invalid(KorrigoError):
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class Unparsable(Invalid):
    http_status = 400


class Unauthenticated(KorrigoError):
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class Forbidden(KorrigoError):
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class NotFound(KorrigoError):
    http_status = 404
    grpc_status = "NOT_FOUND"


class StateConflict(KorrigoError):
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class AlreadyExists(StateConflict):
    grpc_status = "ALREADY_EXISTS"


class Gone(KorrigoError):
    http_status = 410
    grpc_status = "NOT_FOUND"


class Stale(KorrigoError):
    """A version did not match; `current` in the metadata carries the document as it is now."""

    http_status = 412
    grpc_status = "ABORTED"


class TooLarge(KorrigoError):
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"


class Unsupported(KorrigoError):
    http_status = 415
    grpc_status = "INVALID_ARGUMENT"


class Exhausted(KorrigoError):
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    is_retryable = True


class Timeout(KorrigoError):
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    is_retryable = True


class Unavailable(KorrigoError):
    http_status = 503
    grpc_status = "UNAVAILABLE"
    is_retryable = True


class Bug(KorrigoError):
    """Something that must not happen; jobs retry it because most are races of the environment."""

    is_retryable = True


def classes() -> list[type[KorrigoError]]:
    """List every concrete class, base first; the wire converters and the docs are built from it."""
    found: list[type[KorrigoError]] = []
    queue: list[type[KorrigoError]] = [KorrigoError]
    while queue:
        cls = queue.pop(0)
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found[1:]
