"""Listening sockets."""

import errno
import os
import socket

from serving.config import ConfigError


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket. Raises ConfigError, which names `flag`, when the address is not free."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error}") from error
    family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it; without
    # that, every answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere this option would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} ({flag}) on {host} is taken by another program; stop that program, "
                f"or choose a free port with {flag}=<number>"
            ) from error
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; "
            f"choose another --host or {flag}"
        ) from error
    listener.setblocking(False)
    return listener


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
