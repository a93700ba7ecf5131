"""What stands before the service of chat.py: who may ask, how much may come, and errors as one shape."""

import asyncio
import hmac
import json
import os
import sys
from urllib.parse import urlsplit

from chat_api import ApiError, first_problem
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

MAX_BODY = 2**20  # bytes of a request that are kept; more of it is read and thrown away, so that the client hears why
BODY_SECONDS = 20.0
OPEN = ("/", "/health", "/docs", "/chat_page/")  # what needs no key: no word of a model is in it
HERE = ("localhost", "127.0.0.1", "[::1]")
COLAB = " https://colab.research.google.com https://*.googleusercontent.com"  # its page, a cell's output


def headers():
    """What every answer tells the browser. No other site may frame the page; in Colab a cell of a notebook does."""
    frames = "'self'" + COLAB * ("google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ)
    return {
        b"content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}".encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cache-control": b"no-store",
    }


def host_of(value):
    """The name in a Host header, without the port."""
    name, colon, port = value.rpartition(":")
    return (name if colon and port.isdigit() else value).lower()


class Guard:
    """ASGI middleware: Host and Origin must be this server's, a key is asked for, headers close the browser's doors.

    Without the check of Host a page elsewhere could give its own name the address 127.0.0.1 and read the answers
    ("DNS rebinding"); without that of Origin it could send requests blindly. With a key, which such a page has not,
    any Host may stand there.
    """

    def __init__(self, app, api_key, hosts, refused):
        self.refused = refused
        self.app, self.key, self.hosts = app, api_key and api_key.encode(), {*HERE, *(host.lower() for host in hosts)}
        self.headers = headers()

    def refusal(self, scope):
        """An ApiError, or None."""
        headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, value.decode("latin-1"))
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.key and host_of(host) not in self.hosts:
            return ApiError(403, f"this server is not called {host[:100]!r}; start it with --allow-host", "host")
        if origin is not None:
            netloc = urlsplit(origin).netloc.lower()
            if netloc != host.lower() and host_of(netloc) not in self.hosts - {*HERE}:
                return ApiError(403, f"requests from pages of {origin[:100]!r} are not answered", "origin")
        path = scope["path"]
        if self.key and not (path in OPEN or path.startswith(OPEN[-1])):
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.key):
                wants = {"WWW-Authenticate": "Bearer"}
                return ApiError(401, "this server asks for a key: Authorization: Bearer KEY", "invalid_api_key",
                                kind="authentication_error", headers=wants)  # fmt: skip
        return None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] += [(name, value) for name, value in self.headers.items() if name not in given]
            await send(message)

        try:
            error = self.refusal(scope)
        except ValueError:  # an Origin that is no address
            error = ApiError(403, "the Origin of this request is no address", "origin")
        if error:
            self.refused(error.status)
        answer = error_response(error) if error else self.app
        await answer(scope, receive, send_with_headers)


def error_response(error):
    return JSONResponse(error.body, error.status, error.headers)


async def read_request(request, shape):
    """The body of `request` as a `shape`. Raises ApiError: 400, or 408 and 413 for what is too slow or too large."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                body += part[: MAX_BODY - len(body)]
                if size > 64 * MAX_BODY:
                    break
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {BODY_SECONDS:.0f} seconds", "timeout") from None
    except ClientDisconnect:  # nobody reads this
        raise ApiError(400, "the client left before its request was complete", "incomplete") from None
    if size > MAX_BODY:
        raise ApiError(413, f"the request is larger than {MAX_BODY:,} bytes", "too_large")
    try:
        return shape.model_validate_json(bytes(body))
    except ValidationError as error:
        message, param = first_problem(error)
        raise ApiError(400, message, "invalid_value", param) from None


def openapi_with_bodies(document, shapes, names):
    """Add what the requests hold to FastAPI's description, since `read_request` reads them: {path: shape}.

    `names` are those of the models that answer.
    """
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for path, shape in shapes.items():
        made = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(made.pop("$defs", {}))
        schemas[shape.__name__] = made
        if "model" in made["properties"]:
            made["properties"]["model"]["enum"] = names
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}}
        post = document["paths"][path]["post"]
        post["requestBody"] = {"required": True, "content": content}
        if "stream" in made["properties"]:
            event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
            post["responses"]["200"]["content"]["text/event-stream"] = {"schema": event}
    for part in document["paths"]["/v1/models/{name}"]["get"]["parameters"]:
        part["schema"]["enum"] = names
    return json.loads(json.dumps(document))
