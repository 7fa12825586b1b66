"""Connections for many requests in flight to one server."""

from __future__ import annotations

import urllib.request

import aiohttp
import httpx2
import openai


def http_client(timeout: float) -> httpx2.AsyncClient | None:
    """aiohttp under the library's own interface, which takes two thirds of the time; None where a proxy is set.

    The usual connections know proxies. They look at all of them, with a system call each, whenever one is taken or
    given back, and read headers in Python.
    """
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return None
    try:
        return openai.DefaultAioHttpClient(timeout=timeout)
    except RuntimeError:
        # An openai from before it could do this.
        return None


def was_cut(error: BaseException) -> bool:
    """Whether a connection that had been made broke: what carries aiohttp calls this a time-out of connecting."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, aiohttp.ClientError):
        cause = cause.__cause__
    return cause is not None and not isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError))
