"""Connections for many requests in flight to one server."""

from __future__ import annotations

import asyncio
import functools
import ssl
import urllib.parse
import urllib.request

import aiohttp
import httpx2
import openai

LONGEST_HEADER = 65536
"""Bytes of one header line; aiohttp takes 8190 and 128 lines, and an answer behind longer ones would be lost."""
MOST_HEADERS = 1000
ROUNDS = 4
"""Of the event loop, within which a connection that was closed is known as such."""


def http_client(timeout: float, base_url: str | None = None) -> httpx2.AsyncClient | None:
    """aiohttp under the library's own interface, which takes two thirds of the time; None where it would not do.

    The usual connections know proxies, and addresses with a user name. They look at all of them, with a system call
    each, whenever one is taken or given back, and read headers in Python.
    """
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return None
    # aiohttp refuses a name and password in the address beside the header with the key.
    if "@" in urllib.parse.urlsplit(base_url or "").netloc:
        return None
    try:
        from openai._vendor.httpx_aiohttp import AiohttpTransport
    except ImportError:
        # An openai from before it could do this.
        return None
    context = httpx2.create_ssl_context()
    transport = AiohttpTransport(verify=context, client=functools.partial(_session, context))
    return openai.DefaultAsyncHttpxClient(transport=transport, timeout=timeout)


def _session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # As many connections as there are requests in flight, whose number is held elsewhere.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5.0, ssl=context),
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
        max_headers=MOST_HEADERS,
    )


async def closed_ones_noticed() -> None:
    """Let the event loop see which connections the server has closed while this process was busy.

    A request sent on such a connection is lost. The loop sees the end in its next round and acts on it before the one
    after; under TLS it takes further rounds.
    """
    for _ in range(ROUNDS):
        await asyncio.sleep(0)


def not_made(error: BaseException) -> bool:
    """Whether aiohttp could make no connection; what carries it calls this a time-out of connecting, at once or not."""
    return isinstance(_aiohttp_error(error), (aiohttp.ClientConnectorError, aiohttp.InvalidURL))


def was_cut(error: BaseException) -> bool:
    """Whether a connection that had been made broke: what carries aiohttp calls this a time-out of connecting."""
    cause = _aiohttp_error(error)
    return cause is not None and not not_made(cause) and not isinstance(cause, aiohttp.ServerTimeoutError)


def _aiohttp_error(error: BaseException) -> aiohttp.ClientError | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientError):
        cause = cause.__cause__
    return cause
