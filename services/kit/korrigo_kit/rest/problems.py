"""Errors as RFC 9457 problem+json: the one conversion point of the HTTP wire."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from korrigo_kit import context
from korrigo_kit.errors import Bug, Invalid, KorrigoError

log = logging.getLogger("korrigo.rest")

RETRY_AFTER_SECONDS = 2
_HTTP_REASONS = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 400: "UNPARSABLE", 413: "BODY_TOO_LARGE"}


class Problem(BaseModel):
    """A refusal: what was wrong, in a word that programs read and a sentence that people read."""

    model_config = ConfigDict(extra="allow")
    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    request_id: str


def problem(error: KorrigoError) -> Response:
    """Write an error as a response."""
    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.metadata.get("retry_after_seconds", RETRY_AFTER_SECONDS))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {
        **error.metadata,
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "reason": error.reason,
        "request_id": context.request_id(),
    }
    return Response(orjson.dumps(body, default=str), error.status, headers, "application/problem+json")


def install(app: FastAPI) -> None:
    """Register the handlers of every kind of error."""

    def on_korrigo_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, KorrigoError)
        level = logging.WARNING if error.status >= 500 else logging.INFO
        log.log(level, "refused: %s", error.reason, extra={"reason": error.reason, "status_code": error.status})
        return problem(error)

    def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fields = [
            {"field": ".".join(str(part) for part in item["loc"]), "message": item["msg"]} for item in error.errors()
        ]
        is_unparsable = any(item["type"] == "json_invalid" for item in error.errors())
        refusal = KorrigoError(
            "UNPARSABLE" if is_unparsable else "VALIDATION_ERROR",
            "; ".join(f"{item['field']}: {item['message']}" for item in fields[:3]),
            status=400 if is_unparsable else 422,
            errors=fields[:20],
        )
        return problem(refusal)

    def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = _HTTP_REASONS.get(error.status_code, "HTTP_ERROR")
        response = problem(KorrigoError(reason, str(error.detail), status=error.status_code))
        for key, value in (error.headers or {}).items():
            response.headers[key] = value
        return response

    def on_unencodable(request: Request, error: Exception) -> Response:
        # A lone surrogate is JSON and no text: no file, hash or database can hold it.
        return problem(Invalid("INVALID_VALUE", "a text holds a character that cannot be written"))

    app.add_exception_handler(UnicodeEncodeError, on_unencodable)
    app.add_exception_handler(KorrigoError, on_korrigo_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)


def on_bug(error: Exception) -> Response:
    """Answer 500 for what nobody foresaw; the log has the trace, the answer only its type."""
    log.error("unexpected %s", type(error).__name__, exc_info=error)
    return problem(Bug("BUG", "something went wrong here; the request id finds it in the log"))


def responses() -> dict[int | str, dict[str, Any]]:
    """Describe the refusals that any operation may give, for the OpenAPI document."""
    return {
        code: {"model": Problem, "content": {"application/problem+json": {}}, "description": text}
        for code, text in {
            400: "The request cannot be read.",
            401: "Log in first.",
            403: "Your roles do not allow it.",
            404: "There is no such thing, or not for you.",
            409: "Its state does not allow it.",
            412: "Somebody changed it meanwhile; the current document is in `current`.",
            413: "Too large.",
            415: "Wrong content type.",
            422: "A value is wrong.",
            428: "If-Match is missing.",
            429: "Too many requests.",
            503: "A part is away; try again.",
            507: "The disk is full.",
        }.items()
    }
