"""Fixtures of the end-to-end tests."""

from harness.instances import admin, fresh, instance, make_user

__all__ = ["admin", "fresh", "instance", "make_user"]
