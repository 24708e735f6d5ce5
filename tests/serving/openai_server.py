"""A server on a port of this machine, in a thread of the test: door, REST app, models and all."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from toy_exports import wait_until
from toy_writer import tokens_of

from serving import servable
from serving.config import ServerConfig
from serving.door import Door
from serving.repository import Repository
from serving.rest import create_app
from serving.service import Service
from serving.writing import Piece, Tokens


class Running:
    """`url` of the server, and what is behind it."""

    def __init__(
        self, server: uvicorn.Server, service: Service, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.service, self.loop = service, loop
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextlib.contextmanager
def serving(repository, config: ServerConfig) -> Iterator[Running]:
    """A server over a repository that is there already."""
    service = Service(repository, 8, config.max_waiting_requests, config.max_streams)
    app = Door(create_app(service, None, config), service, config)
    settings = uvicorn.Config(app, port=0, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(settings)
    loops = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Running(server, service, loops[0])
    finally:
        server.should_exit = True
        thread.join(10)
        service.close()


@contextlib.contextmanager
def repository_of(exports: Path) -> Iterator[Repository]:
    repository = Repository(ServerConfig(exports=exports), servable.load)
    repository.start()
    wait_until(lambda: repository.readiness()[0])
    yield repository
    assert repository.stop(10)


class Slow:
    """A writer that writes a letter for each permission, and knows whether it was let go."""

    context_length, vocabulary_size, has_ended = 32, 260, False

    def __init__(self):
        self.may_write = threading.Semaphore(0)
        self.has_begun, self.is_closed = threading.Event(), threading.Event()
        self.error = None

    async def tokenize(self, texts):
        return [Tokens(tuple(tokens_of(text)), len(text)) for text in texts]

    async def write(self, request):
        self.has_begun.set()
        try:
            for i in range(request.max_tokens):
                while not self.may_write.acquire(blocking=False):
                    if self.error:
                        raise self.error
                    await asyncio.sleep(0.002)
                is_last = i == request.max_tokens - 1
                yield Piece("x", (124,), (), "length" if is_last else None, 1)
        finally:
            self.is_closed.set()
