"""The address that a server listens on."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..configs.serving import ServeConfig

# An address whose last server has just ended is taken, one that has a server is not: on Windows SO_REUSEADDR would share that.
_ALONE = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)


def bound(config: ServeConfig) -> socket.socket:
    """The socket of the server's address. It is made before the model is read, which may take minutes for nothing.

    Raises
    ------
    ConfigError
        Another program has the address, or this machine has none such.
    """
    opened = None
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, number)
        opened.setsockopt(socket.SOL_SOCKET, _ALONE, 1)
        opened.bind(address)
    except (OSError, UnicodeError) as error:
        if opened is not None:
            opened.close()
        raise no_address(config, error) from None
    return opened


def no_address(config: ServeConfig, error: OSError | UnicodeError) -> ConfigError:
    """What is said where it cannot listen."""
    option = "port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "host"
    reason = getattr(error, "strerror", None) or "no name of a host"
    return ConfigError(f"{option}: expected to listen on {config.host}:{config.port}, got: {reason}; give another --{option}")


def address_of(opened: socket.socket) -> str:
    """The address of the page, with the port that was found."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    with suppress(OSError, ValueError):
        found: Any = socket.getaddrinfo(host, None)
        return all(str(entry[4][0]).startswith("127.") or entry[4][0] == "::1" for entry in found)
    return False
