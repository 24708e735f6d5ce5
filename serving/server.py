"""The embedded server: one process, one event loop under both front ends, threads for inference."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from typing import Any

from serving.config import ConfigError, ServerConfig
from serving.sockets import listen, url_host

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they close first
CLOSING_SECONDS = 2  # for answers that are computed but not yet sent


def serve(config: ServerConfig) -> int:
    """Serves until a signal; returns the exit code. Raises ConfigError when a port is taken."""
    listener = (
        listen(config.host, config.rest_api_port, "--rest_api_port")
        if config.rest_api_port
        else None
    )
    _import_tensorflow()
    is_clean = _run(_serve(config, listener))
    if not is_clean:
        # Threads inside TensorFlow cannot be stopped, and the interpreter would wait for them.
        logging.shutdown()
        os._exit(0)
    return 0


def _import_tensorflow() -> None:
    """Imports TensorFlow and finds its devices without the half page it writes while doing so.

    Some of that comes before any log level is read, so stderr itself is held back meanwhile. What
    is more than information is passed on afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    real_stderr = os.dup(2)
    gpus: list[Any] = []
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  the ops of graphs with a tokenizer inside

            gpus = tf.config.list_physical_devices("GPU")
        finally:
            os.dup2(real_stderr, 2)
            os.close(real_stderr)
            held_back.seek(0)
            for line in held_back.read().decode(errors="replace").splitlines():
                is_noise = line.startswith(("I0000", "WARNING: All log messages before absl"))
                if not is_noise and (gpus or "cuInit" not in line):
                    print(line, file=sys.stderr)
    tf.get_logger().setLevel("ERROR")  # its deprecation notes are for authors of graphs
    log.info("TensorFlow %s, %s", tf.__version__, f"{len(gpus)} GPU" if gpus else "CPU only")


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run(main)
    return uvloop.run(main)


async def _serve(config: ServerConfig, listener: socket.socket | None) -> bool:
    """True when everything ended by itself; False when threads had to be left behind."""
    import uvicorn

    from serving import servable
    from serving.grpc_server import create_server
    from serving.repository import Repository
    from serving.rest import create_app
    from serving.service import Service

    class HttpServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are ours: draining comes before closing

    repository = Repository(config, servable.load)
    service = Service(repository)
    stopping = _stop_on_signals()
    host = url_host(config.host)

    grpc_server = create_server(service)
    if config.port:
        try:
            grpc_server.add_insecure_port(f"{host}:{config.port}")
        except RuntimeError as error:
            raise ConfigError(f"--port: cannot listen on {host}:{config.port}: {error}") from error
        await grpc_server.start()
        log.info("gRPC: %s:%d", host, config.port)

    http_server = HttpServer(
        uvicorn.Config(
            create_app(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
    )
    http_task = None
    if listener:
        http_task = asyncio.create_task(http_server.serve(sockets=[listener]))
        log.info("REST: http://%s:%d/v1/models/<name>:predict", host, config.rest_api_port)

    repository.start()
    await stopping.wait()

    log.info("Stopping: waiting up to %g s for running requests", config.drain_seconds)
    num_unfinished = await service.drain(config.drain_seconds)
    if num_unfinished:
        log.warning("Requests cut off because they did not finish in time: %d", num_unfinished)
    http_server.should_exit = True
    await grpc_server.stop(CLOSING_SECONDS)
    if http_task:
        await http_task
    service.close()
    has_stopped = await asyncio.to_thread(repository.stop, CLOSING_SECONDS)
    log.info("Stopped")
    return has_stopped and not num_unfinished


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets. The second one ends the process at once."""
    stopping = asyncio.Event()

    def on_signal(signum: int) -> None:
        if stopping.is_set():
            os._exit(128 + signum)
        stopping.set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)
    return stopping
