"""Fixtures of the end-to-end tests."""

from harness.instances import admin, fresh, instance, make_user
from harness.own_instance import boss, korrigo, own, own_env

__all__ = ["admin", "boss", "fresh", "instance", "korrigo", "make_user", "own", "own_env"]
