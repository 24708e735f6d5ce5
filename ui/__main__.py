"""`python -m ui`: starts the pages.

Streamlit runs in this process; what the pages need to know travels in environment variables, so
`streamlit run ui/app.py` understands the same settings. Streamlit is imported only after the
arguments are read: `--help` answers at once.
"""

import argparse
import errno
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ui import settings

APP = Path(__file__).with_name("app.py")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    problem = _why_not_free(options.host, options.port)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    os.environ[settings.SERVER] = options.server
    os.environ[settings.MODELS] = options.models
    os.environ[settings.LANGUAGE] = options.language
    print(f"Stepwise: http://{_in_url(options.host)}:{options.port}  (Ctrl-C stops it)", flush=True)
    return _run_streamlit(options.host, options.port)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ui", description="The pages for trying the models of a running server."
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        type=_url,
        default=settings.server(),
        help="the model server's REST address (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        metavar="A,B,C",
        default=",".join(settings.models()),
        help="models to ask for when the server cannot list its own, as stock TensorFlow Serving "
        "cannot (default: %(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="listen here (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8502, help="(default: %(default)s)")
    parser.add_argument(
        "--language",
        choices=settings.LANGUAGES,
        default=settings.language(),
        help="language the pages start in (default: the browser's)",
    )
    return parser.parse_args(arguments)


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(
            f"expected an address such as http://127.0.0.1:8501, received {value!r}"
        )
    return value.rstrip("/")


def _port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, received {value!r}")
    return int(value)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _why_not_free(host: str, port: int) -> str | None:
    """A sentence when the pages cannot listen at this address; Streamlit itself only logs it."""
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do it: a port whose last connections still linger counts as free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is taken by another program; stop that one, "
                "or choose a free port with --port."
            )
        return (
            f"Cannot listen on {host}, port {port} ({error.strerror}); choose another address with "
            "--host or another port with --port."
        )
    return None


def _run_streamlit(host: str, port: int) -> int:
    from streamlit.web import cli

    flags = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",  # opens no browser window and asks for no e-mail address
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "logger.hideWelcomeMessage": "true",
    }
    command = ["run", str(APP), *(f"--{name}={value}" for name, value in flags.items())]
    try:
        cli.main(command, prog_name="streamlit", standalone_mode=False)
    except KeyboardInterrupt:
        pass  # Ctrl-C before Streamlit's own handler stood
    return 0


if __name__ == "__main__":
    sys.exit(main())
