"""The course's one HTTP client: ask for a small answer in JSON, or open a response to be read as it comes."""

import contextlib
import itertools
import socket
import threading
import time
from concurrent.futures import Future
from urllib.parse import urlsplit

import requests
import urllib3

from shared.data.formats import parse_json

CONNECT_TIMEOUT = 3  # seconds to reach one address of a host
READ_TIMEOUT = 15  # seconds until an answer begins, and without a byte
TRIES = 3  # requests in a row that bring nothing new, then a URL is given up
PAUSE = 0.5  # seconds before the second of them; twice as long before the third, and so on
PATIENCE = 300  # seconds to wait, all in all, for a server that asks for a pause (429, 503)
LARGEST_ANSWER = 2**24  # bytes of an answer in JSON


class Failed(Exception):
    """One URL does not give what was asked of it; the message says why."""


def ask_json(method, url, *, seconds=READ_TIMEOUT, **settings):
    """(what a server answers in JSON, the response with its headers). `settings` are those of `requests.request`.

    The answer must begin within `seconds` and then end within `seconds`. Raises Failed with the reason in words.
    """
    for attempt in range(TRIES):
        try:
            with open_url(method, url, seconds, **settings) as response:
                content, deadline = bytearray(), time.monotonic() + seconds
                for block in blocks_of(response, unpack=True):
                    content += block
                    if len(content) > LARGEST_ANSWER or time.monotonic() > deadline:
                        raise Failed(f"no end of its answer within {seconds:g} s and {LARGEST_ANSWER:,} bytes")
            if response.status_code != 200:
                raise Failed(f"{status_of(response)}: {content[:200].decode('utf-8', errors='replace')}")
            return parse_json(bytes(content)), response
        except requests.RequestException as error:
            reason, dead = explain(error, seconds)
            if dead or method != "GET" or attempt == TRIES - 1:  # what is not a GET may have been done, and paid for
                raise Failed(reason) from error
            time.sleep(PAUSE * 2**attempt)
        except ValueError as error:
            raise Failed(f"its answer is no JSON ({error})") from None


def open_url(method, url, seconds, **settings):
    """The response to a request, to be used in a `with`; its body is not read yet. It must begin within `seconds`.

    A server that asks for a pause (429; 503 with Retry-After) gets it, PATIENCE seconds in all; one that fails (5xx) is
    asked TRIES times, if the request is a GET. What it says after that is returned, whatever its status. Raises
    requests.RequestException.
    """
    waited = 0
    for attempt in itertools.count():
        try:
            response = _in_time(seconds, requests.request, method, url, stream=True, timeout=(CONNECT_TIMEOUT, seconds),
                                hooks={"response": _leave_redirect}, **settings)  # fmt: skip
        except (urllib3.exceptions.LocationParseError, ValueError) as error:  # also of what a redirect leads to
            raise requests.exceptions.InvalidURL(error) from None
        pause = _pause(response, attempt, method)
        if pause is None or pause > PATIENCE - waited:
            return response
        response.close()
        if pause > 2:
            print(f"{urlsplit(url).hostname}: {status_of(response)}; asking again in {pause:.0f} s", flush=True)
        time.sleep(pause)
        waited += pause


def _leave_redirect(response, **_):
    """Nobody reads what comes with a redirect; requests would, to its end."""
    if response.is_redirect:
        response.close()


def _pause(response, attempt, method):
    """Seconds to wait before the request is sent again; None where that makes no sense."""
    status, pause = response.status_code, PAUSE * 2**attempt
    if status in (429, 503) and "Retry-After" in response.headers:
        with contextlib.suppress(ValueError, OverflowError, urllib3.exceptions.HTTPError):  # neither seconds nor a date
            return max(pause, urllib3.Retry().parse_retry_after(response.headers["Retry-After"]))
    fails = status in (408, 425, 503) or (status >= 500 and method == "GET")
    return pause if status == 429 or (fails and attempt < TRIES - 1) else None


def status_of(response):
    """What the server said, such as `HTTP 429 Too Many Requests, Retry-After: 3600`."""
    after = response.headers.get("Retry-After")
    return f"HTTP {response.status_code} {response.reason}" + (f", Retry-After: {after[:40]}" if after else "")


def _in_time(seconds, function, *args, **kwargs):
    """What the function returns, or requests.ReadTimeout: no server can hold it up, not even with headers that drip."""
    future = Future()

    def call():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        future.add_done_callback(lambda late: late.exception() or late.result().close())
        raise requests.ReadTimeout from None


def blocks_of(response, unpack):
    """The body of a response, as it comes; with `unpack`, without its Content-Encoding."""
    try:
        while block := response.raw.read1(2**16, decode_content=unpack):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def explain(error, seconds):
    """What went wrong with a request, in words; and whether its host is dead: not to be asked again for a while."""
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not accepted (a filter or a proxy in between?)", True
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy that is set (HTTP_PROXY, HTTPS_PROXY) gives no connection to it", True
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT} s", True
    if isinstance(error, (ValueError, requests.TooManyRedirects)):
        return f"this address cannot be asked ({error})", True
    if error.args and isinstance(error.args[0], urllib3.exceptions.DecodeError):
        return "its encoding cannot be undone", False
    inner = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        if isinstance(inner.__context__, socket.gaierror):
            return "its name is not known here (no network?)", True
        return f"no connection ({inner.__context__.strerror})", True
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {seconds:g} s", True
    return f"the connection breaks off ({type(error).__name__})", False
