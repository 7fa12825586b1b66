"""Connections for many requests in flight to one server."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import AsyncIterator

import httpx2
import openai


def http_client(timeout: float) -> httpx2.AsyncClient | None:
    """A client that keeps each connection by itself; None where a proxy is set, which the library's own knows.

    The library's pool looks at all of its connections, with a system call each, whenever one is taken or given back:
    with 64 in flight that is a fifth of the cost of a request.
    """
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return None
    return openai.DefaultAsyncHttpxClient(transport=Connections(), timeout=timeout)


class Connections(httpx2.AsyncBaseTransport):
    """A stack of transports with one connection each; the last one that was free is the next one taken."""

    def __init__(self) -> None:
        # Reading the certificates takes longer than a request.
        self._context: ssl.SSLContext | None = None
        self._free: list[httpx2.AsyncHTTPTransport] = []
        self._all: list[httpx2.AsyncHTTPTransport] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send on a free connection; it is free again when the answer has been read."""
        transport = self._free.pop() if self._free else self._new()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            self._free.append(transport)
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Body(response.stream, lambda: self._free.append(transport))
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._all:
            await transport.aclose()

    def _new(self) -> httpx2.AsyncHTTPTransport:
        if self._context is None:
            self._context = httpx2.create_ssl_context()
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        transport = httpx2.AsyncHTTPTransport(verify=self._context, limits=limits)
        self._all.append(transport)
        return transport


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, which says when it has been closed."""

    def __init__(self, stream: httpx2.AsyncByteStream, closed: object) -> None:
        self._stream = stream
        self._closed = closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        """Close, and give the connection back, once."""
        closed, self._closed = self._closed, None
        try:
            await self._stream.aclose()
        finally:
            if callable(closed):
                closed()
