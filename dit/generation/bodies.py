"""Bodies of HTTP requests: bounded in size, and JSON as its standard has it."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import Request

from dit.errors import first_line
from dit.generation.asking import Refused


async def bytes_of(request: Request, most: int) -> bytes:
    """Returns the body of a request. Raises Refused for one of more than `most` bytes."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            raise Refused(f"the body has more than {most} bytes", 413, "request_too_large")
    return bytes(data)


async def body_of(request: Request, most: int) -> dict[str, Any]:
    """Returns the JSON object of a request. Raises Refused for another body, or one of more than `most` bytes."""
    data = await bytes_of(request, most)
    try:
        found = json.loads(data, parse_constant=no_number)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is in no answer either
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {first_line(error)}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refused("the body must be a JSON object", code="invalid_json")
    return found


def no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


async def disconnected(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
