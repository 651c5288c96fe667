"""No way beyond this machine, in whatever Python process imports this: as `sitecustomize`, in each.

An audit hook sees connections, datagrams and look-ups of names, whichever library asks for them;
it writes them down and refuses them. Of what is not Python's own (a browser, Rust inside of
huggingface-hub) it sees nothing: those are told to stay offline by their own switches.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

LOG = "EVITLAB_TESTS_NETWORK_LOG"  # the file in which attempts are kept
_CONNECTS = {"socket.connect", "socket.sendto", "socket.sendmsg"}  # (socket, address)
_LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}  # (host, ...)
_log = os.environ.get(LOG)


class NetworkUsedError(OSError):
    """A test, or a process that it started, wants to reach another machine."""


def _wanted(event: str, args: tuple[Any, ...]) -> str | None:
    """Which other machine; None where it is this one."""
    if event in _CONNECTS:
        link, address = args[0], args[1] if len(args) > 1 else None
        if link.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
            return None
        host, named = address[0], False
    elif event in _LOOK_UPS:
        host, named = args[0], True
    else:
        return None
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if not host or host == "localhost":
        return None
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return None if host == socket.gethostname() else str(host)
    # A number is looked up nowhere; what is done with it is seen when it is done. To connect to
    # "any address" is to connect to this machine.
    here = address.is_loopback or address.is_unspecified
    return None if here or named else str(host)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _log is None or not event.startswith("socket."):
        return
    host = _wanted(event, args)
    if host is not None:
        said = f"{event} to {host} by {sys.argv[0] if hasattr(sys, 'argv') else 'python'}"
        # A process of pytest-xdist has another log than the one it was started with.
        with open(os.environ.get(LOG, _log), "a", encoding="utf-8") as log:
            log.write(said + "\n")
        raise NetworkUsedError(f"tests need no network: {said}")


if _log is not None:
    sys.addaudithook(_hook)
