"""The page on which one reviewer judges held pictures, one after another; it shows no verdicts of others."""

from __future__ import annotations

import secrets
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment

from dit.errors import some
from dit.generation.audit import AuditLog
from dit.generation.credentials import kind_of
from dit.generation.label_studio import prompt_of
from dit.generation.reviews import Held, give, held_in
from dit.generation.server import bound

TEMPLATE = Path(__file__).with_name("review.html")
SMALL = 256  # pixels of a picture's side, up to which its pixels are shown as squares
BODY = 10_000  # bytes of a verdict


def page_of(log: AuditLog, folder: Path, reviewer: str, token: str) -> FastAPI:
    """Returns the application. token: in all its addresses, so that no other page in the browser can use it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))

    # The functions are async, so that one of them at a time uses the log.
    def shown(fault: str = "", status: int = 200) -> Response:
        pictures, nonce = held_in(log, folder), secrets.token_urlsafe(16)
        left = [held for held in pictures.values() if held.waits_for(reviewer)]
        skipped = list(takewhile(lambda held: not held.is_in(folder), left))
        held = next(iter(left[len(skipped) :]), None)
        fields: dict[str, Any] = {"reviewer": reviewer, "total": len(pictures), "waiting": len(left), "fault": fault}
        fields["skipped"] = some([held.file for held in skipped], 3)
        fields |= {"judged": sum(reviewer in one.verdicts for one in pictures.values()), "held": held, "nonce": nonce}
        if held is not None:
            small = max(held.body["width"], held.body["height"]) <= SMALL
            fields |= {"prompt": prompt_of(log, held), "rendering": "pixelated" if small else "auto"}
        policy = f"default-src 'none'; img-src 'self'; form-action 'self'; style-src 'nonce-{nonce}'"
        headers = {"Content-Security-Policy": f"{policy}; script-src 'nonce-{nonce}'; frame-ancestors 'none'"}
        headers |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return HTMLResponse(template.render(fields), status, headers)

    def of_entry(text: str) -> Held:
        found = [held for held in held_in(log, folder).values() if str(held.entry) == text]
        if not found:
            raise ValueError(f"{text[:20]!r} is not the entry of a picture in {folder}")
        return found[0]

    @app.get(f"/{token}/")
    async def page() -> Response:
        return shown()

    @app.get(f"/{token}/picture/{{entry}}")
    async def picture(entry: str) -> Response:
        try:
            content = of_entry(entry).content(folder)
        except ValueError as error:
            return Response(str(error), 404, media_type="text/plain")
        return Response(content, media_type=kind_of(content), headers={"X-Content-Type-Options": "nosniff"})

    @app.post(f"/{token}/verdict")
    async def verdict(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY:
                return shown(f"the verdict has more than {BODY} bytes; shorten the reason", 413)
        try:
            given = {name: values[0] for name, values in parse_qs(body.decode(), max_num_fields=10).items()}
            held = of_entry(given.get("entry", ""))
            held.content(folder)  # what was seen is what was logged
            give(log, held, reviewer, given.get("verdict", ""), given.get("reason", ""))
        except ValueError as error:
            return shown(str(error), 400)
        return RedirectResponse(f"/{token}/", 303)

    return app


def serve_page(log: AuditLog, folder: Path, reviewer: str, port: int) -> None:
    """Prints the page's address on this machine and serves it until SIGINT or SIGTERM. Raises ValueError for a reviewer
    without a name, a port in use, and a folder without held pictures."""
    if not reviewer.strip():
        raise ValueError("--reviewer is empty; give the name that the verdicts are recorded under")
    held_in(log, folder)
    where, token = bound("127.0.0.1", port), secrets.token_urlsafe(16)
    print(f"http://127.0.0.1:{where.getsockname()[1]}/{token}/", flush=True)
    app = page_of(log, folder, reviewer.strip(), token)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[where])
