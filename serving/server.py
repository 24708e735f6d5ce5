"""The embedded server: one process, one event loop under both front ends, threads for inference."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from model.runtime import import_tensorflow
from serving import metrics
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.sockets import listen, url_host

if TYPE_CHECKING:
    from serving.repository import Repository

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they close first
CLOSING_SECONDS = 2  # for answers that are computed but not yet sent


def serve(config: ServerConfig) -> int:
    """Serves until a signal; returns the exit code.

    Raises ConfigError when a port is taken, ServingError when a configured model cannot be served.
    """
    # The 400,000 objects of TensorFlow's modules are never garbage. Looking through them again and
    # again takes a third of the start, and later a quarter of a busy server's time.
    gc.disable()
    if config.xla_cache:  # read when TensorFlow first compiles, and never again
        flag = f"--tf_xla_persistent_cache_directory={config.xla_cache.resolve()}"
        os.environ["TF_XLA_FLAGS"] = f"{os.environ.get('TF_XLA_FLAGS', '')} {flag}".strip()
    num_gpus = import_tensorflow()
    import tensorflow as tf

    log.info("TensorFlow %s, %s", tf.__version__, f"{num_gpus} GPU" if num_gpus else "CPU only")
    is_clean = _run(_serve(config))
    if not is_clean:
        # Threads inside TensorFlow cannot be stopped, and the interpreter would wait for them.
        logging.shutdown()
        os._exit(0)
    return 0


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run(main)
    return uvloop.run(main)


async def _serve(config: ServerConfig) -> bool:
    """True when everything ended by itself; False when threads had to be left behind."""
    import uvicorn

    from serving.door import Door
    from serving.grpc_server import GrpcServer
    from serving.http_protocol import protocol_with
    from serving.rates import RateLimit
    from serving.repository import COMPILING
    from serving.rest import create_app
    from serving.service import Service, num_threads
    from serving.telemetry import Tracer

    gc.freeze()
    gc.enable()

    class HttpServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals are ours: draining comes before closing

    metrics_path = metrics.page_path(config.monitoring_config_file)  # wrong, it ends the start
    repository = _repository(config)
    service = Service(
        repository, num_threads(config), config.max_waiting_requests, config.max_streams
    )
    tracer = Tracer() if config.telemetry else None
    stopping = _stop_on_signals()
    host = url_host(config.host)

    repository.start()
    if not config.is_discovering and not await _is_available(repository, stopping):
        return await asyncio.to_thread(repository.stop, CLOSING_SECONDS)

    rates = RateLimit.from_config(config)  # of one caller over REST and gRPC together
    grpc_server = GrpcServer(service, config, rates)
    for address in grpc_server.start(host):
        log.info("gRPC: %s", address)

    http_server = HttpServer(
        uvicorn.Config(
            Door(
                create_app(service, metrics_path, config),
                service,
                config,
                rates=rates,
                tracer=tracer,
            ),
            http=protocol_with(config.header_timeout_seconds, config.send_timeout_seconds),
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
            lifespan="off",
            ws="none",
            proxy_headers=False,  # whoever asks could write there what address it likes
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
    )
    http_task = None
    if config.rest_api_port:
        listener = listen(config.host, config.rest_api_port, "--rest_api_port")
        http_task = asyncio.create_task(http_server.serve(sockets=[listener]))
        log.info("REST: http://%s:%d/v1/models/<name>:predict", host, config.rest_api_port)

    await stopping.wait()

    log.info("Stopping: waiting up to %g s for running requests", config.drain_seconds)
    grpc_server.drain()
    num_unfinished = await service.drain(config.drain_seconds)
    if num_unfinished:
        log.warning("Requests cut off because they did not finish in time: %d", num_unfinished)
    http_server.should_exit = True
    await asyncio.to_thread(grpc_server.stop, CLOSING_SECONDS)
    if http_task:
        await http_task
    service.close()
    has_stopped = await asyncio.to_thread(repository.stop, CLOSING_SECONDS)
    if tracer:
        await asyncio.to_thread(tracer.close)
    log.info("Stopped")
    is_compiling = any(thread.name.startswith(COMPILING) for thread in threading.enumerate())
    return has_stopped and not num_unfinished and not is_compiling


def _repository(config: ServerConfig) -> Any:
    if config.engine == "remote":
        from serving.remote import RemoteRepository

        return RemoteRepository(config)
    from serving import servable
    from serving.repository import Repository

    return Repository(config, servable.loader(config))


async def _is_available(repository: "Repository", stopping: asyncio.Event) -> bool:
    """Waits until every configured model is served; False when a stop signal came first.

    Raises ServingError when a load has failed for good.
    """
    available = asyncio.ensure_future(asyncio.to_thread(repository.wait_until_available))
    signalled = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({available, signalled}, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    try:
        if stopping.is_set():
            available.cancel()
            return False
        await available
    except ServingError:
        await asyncio.to_thread(repository.stop, CLOSING_SECONDS)
        raise
    return True


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
