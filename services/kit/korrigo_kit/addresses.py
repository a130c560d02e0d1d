"""Addresses as URLs and Host headers take them; the standard library writes an IPv6 address without its brackets."""

from __future__ import annotations


def in_url(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets, anything else as it is."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
