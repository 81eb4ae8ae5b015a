"""Messages and descriptors between processes: all of them, whole, in order, and nothing left open."""

import asyncio
import contextlib
import gc
import os
import socket
from pathlib import Path

import pytest

from service.frontends.channel import Channel, ChannelClosed


@contextlib.asynccontextmanager
async def pair(**handlers):
    """Two ends on one loop; the second has the handlers."""
    ends, closed = socket.socketpair(), []
    channels = [Channel(end, handlers if i else {}, lambda i=i: closed.append(i)) for i, end in enumerate(ends)]
    try:
        yield (*channels, closed)
    finally:
        for channel in channels:
            channel.close()
        assert sorted(closed) == [0, 1]


def descriptors():
    gc.collect()
    return set(Path("/proc/self/fd").iterdir())


class Text:
    """An open file with a text in it, until nobody holds it."""

    def __init__(self, text):
        self.fd = os.memfd_create("test")
        os.write(self.fd, text.encode())

    def __del__(self):
        os.close(self.fd)

    def fileno(self):
        return self.fd


async def test_messages_of_any_size_arrive_in_order_with_their_files(rng):
    got = []

    def take(content, fds):
        texts = []
        for fd in fds:
            texts.append(os.pread(fd, 100, 0).decode())
            os.close(fd)
        got.append((content["number"], len(content["fill"]), texts))
        return content["number"]

    before = descriptors()
    async with pair(take=take) as (one, _, _):
        sent, answers = [], []
        for number in range(300):
            size = int(rng.choice([0, 1, 100, 70_000, 900_000], p=[0.3, 0.3, 0.3, 0.08, 0.02]))
            texts = [f"{number}.{i}" for i in range(rng.integers(0, 4))]
            content = {"number": number, "fill": "x" * size}
            sent.append((number, size, texts))
            if rng.random() < 0.5:
                answers.append((number, one.call("take", content, [Text(t) for t in texts])))
            else:
                one.post("take", content, [Text(t) for t in texts])
            if rng.random() < 0.2:
                await asyncio.sleep(0)
        for number, answer in answers:
            assert await answer == number
        await one.call("take", {"number": -1, "fill": ""})
    assert got[:-1] == sent
    assert descriptors() == before


async def test_what_fails_is_told_and_the_channel_goes_on(caplog):
    async def fail(content, fds):
        await asyncio.sleep(0)
        raise ValueError("no such thing")

    def fail_at_once(content, fds):
        raise KeyError

    async with pair(fail=fail, fail_at_once=fail_at_once, ok=lambda content, fds: "ok") as (one, _, _):
        with pytest.raises(RuntimeError, match="no such thing"):
            await one.call("fail")
        with pytest.raises(RuntimeError, match="KeyError"):
            await one.call("fail_at_once")
        one.post("fail")
        assert await one.call("ok") == "ok"
    assert "the message fail failed" in caplog.text


async def test_who_waits_for_one_that_ended_is_told():
    async with pair(never=lambda content, fds: asyncio.sleep(60)) as (one, other, closed):
        waiting = one.call("never")
        await asyncio.sleep(0.01)
        other.close()
        with pytest.raises(ChannelClosed):
            await waiting
        assert sorted(closed) == [0, 1]
        before = descriptors()
        with pytest.raises(ChannelClosed):
            one.post("never", files=[Text("")])
        assert descriptors() == before


async def test_files_that_nobody_took_are_closed():
    before = descriptors()
    ends = socket.socketpair()
    one, other = Channel(ends[0], {}, lambda: None), Channel(ends[1], {}, lambda: None)
    for _ in range(50):
        one.post("unknown", {"fill": "x" * 100_000}, [Text("a"), Text("b")])
    await asyncio.sleep(0)
    one.close()
    other.close()
    assert descriptors() == before
