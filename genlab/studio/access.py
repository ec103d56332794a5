"""Who may reach the studio."""

from __future__ import annotations

import ipaddress

from genlab.core.errors import GenlabError


def credentials(host: str, share: bool, auth: str | None) -> tuple[str, str] | None:
    """The user and password to ask for, if any.

    Raises:
        GenlabError: others could reach the page, and no password is set; or `auth` is not user:password.
    """
    if auth is None:
        if share or not _is_loopback(host):
            what = "--share" if share else f"--host {host}"
            raise GenlabError(
                f"{what} lets others reach the studio, who could use this computer: add --auth USER:PASSWORD,"
                " or leave it at 127.0.0.1 and come in through ssh -L 7860:127.0.0.1:7860"
            )
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and password):
        raise GenlabError("--auth reads USER:PASSWORD, neither of them empty")
    return user, password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
