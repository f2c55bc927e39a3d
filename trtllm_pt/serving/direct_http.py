"""HTTP requests to servers on this machine, which never go through a proxy.

Behind a company's proxy the variable http_proxy is set, and urllib then sends even requests to 127.0.0.1 to the proxy,
unless no_proxy lists that address.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from http.client import HTTPResponse
from typing import cast
from urllib.parse import urlsplit

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_directly(request: str | urllib.request.Request, timeout: float | None = None) -> HTTPResponse:
    """Send a request without a proxy, and return the response as urllib.request.urlopen does.

    timeout: in seconds; None waits forever. Raises the errors of urlopen.
    """
    return cast(HTTPResponse, _DIRECT.open(request, timeout=timeout))


def open_url(request: urllib.request.Request) -> HTTPResponse:
    """Send a request, through the proxy of the environment only if the host is another machine."""
    if is_loopback(urlsplit(request.full_url).hostname or ""):
        return open_directly(request)
    return cast(HTTPResponse, urllib.request.urlopen(request))


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address means this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost" or host.endswith(".localhost")
