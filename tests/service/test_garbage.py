"""A request leaves nothing for the garbage collector: its body is freed when it is answered."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import uvicorn
from uvicorn.server import ServerState

from service.app import create_app
from service.http import protocol_of
from tests.conftest import running

REQUESTS = 200
HEAD = (
    b'{"inputs":[{"name":"input","shape":[1,2,4],"datatype":"FP32","parameters":{"binary_data_size":32}}],'
    b'"parameters":{"user_id":"ana"}}'
)


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.answers = []

    def write(self, data):
        self.answers.append(bytes(data))

    def is_closing(self):
        return False

    def close(self):
        pass


def post(path: bytes, head: bytes = HEAD) -> bytes:
    body = head + np.zeros((2, 4), np.float32).tobytes()
    lengths = b"Content-Length: %d\r\nInference-Header-Content-Length: %d\r\n" % (len(body), len(head))
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n%s" % (path, lengths, body)


async def test_answers_and_refusals_leave_no_cycles(settings):
    app = create_app(settings)
    async with running(app):
        config = uvicorn.Config(app, http=protocol_of(app.state.services.plane), ws="none")
        config.load()
        protocol = config.http_protocol_class(
            config=config, server_state=ServerState(), app_state={}, _loop=asyncio.get_running_loop()
        )
        transport = Transport()
        protocol.connection_made(transport)

        async def ask(request):
            before = len(transport.answers)
            protocol.data_received(request)
            while len(transport.answers) == before:
                await asyncio.sleep(0)

        requests = (
            post(b"/v2/models/tiny/infer"),
            post(b"/v2/models/none/infer"),
            post(b"/v2/models/tiny/infer", b"{}"),
        )
        for request in requests:  # what is made once is made now
            await ask(request)
        for request, status in zip(requests, (b"200", b"404", b"400"), strict=True):
            gc.collect()
            gc.disable()
            try:
                for _ in range(REQUESTS):
                    await ask(request)
                left = gc.collect()
            finally:
                gc.enable()
            assert transport.answers[-1].startswith(b"HTTP/1.1 " + status), transport.answers[-1]
            assert left < REQUESTS / 4, f"{left} objects in cycles after {REQUESTS} requests answered {status.decode()}"
        protocol.connection_lost(None)
