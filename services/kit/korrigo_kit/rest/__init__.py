"""REST: the app factory, and what endpoints use: caller, ETag, Idempotency-Key, paging, uploads, problems."""

from korrigo_kit.rest.app import create_app
from korrigo_kit.rest.caller import Caller, authenticate, room_runtime
from korrigo_kit.rest.idempotency import Idempotency, IdempotencyKey
from korrigo_kit.rest.paging import Page, decode_cursor, encode_cursor
from korrigo_kit.rest.preconditions import IfMatch, etag, require_match
from korrigo_kit.rest.upload import Upload, receive_upload

__all__ = [
    "Caller",
    "Idempotency",
    "IdempotencyKey",
    "IfMatch",
    "Page",
    "Upload",
    "authenticate",
    "create_app",
    "decode_cursor",
    "encode_cursor",
    "etag",
    "receive_upload",
    "require_match",
    "room_runtime",
]
