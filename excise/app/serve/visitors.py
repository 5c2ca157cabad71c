"""Who may use a server that asks for no key: programs and pages of this machine alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from excise.errors import shown


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def foreign(headers: Mapping[str, str]) -> str:
    """Return why a request is not one of this machine's own; empty if it is.

    Any web page can make its visitor's browser send requests to this machine. The browser states the page's site in
    `Origin`. If that site's name stands for 127.0.0.1, the page could read the answers too; then `Host` has that name.
    """
    host, origin = headers.get("host"), headers.get("origin")
    if host is not None and not _on_loopback(f"//{host}"):  # every browser states it
        return f"the request is for the host {shown(host)}; ask for 127.0.0.1 or localhost"
    if origin is not None and not _on_loopback(origin):
        return f"the request is of a page of {shown(origin)}; only pages of this machine may ask"
    return ""


def _on_loopback(address: str) -> bool:
    try:
        return is_loopback(urlsplit(address).hostname or "")
    except ValueError:  # no address
        return False
