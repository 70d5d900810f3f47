"""The HTTP server: the endpoints of several contracts over one service, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dit.errors import first_line
from dit.generation.asking import Refused
from dit.generation.batching import Cancelled
from dit.generation.bodies import body_of, bytes_of, disconnected
from dit.generation.contracts import CONTRACTS, Contract
from dit.generation.keys import Key, Keys, given_key
from dit.generation.server_metrics import Metrics
from dit.generation.service import Admitted, Made, Service
from dit.picture_files import size_text

VERIFICATIONS = 4  # pictures to verify that are in memory at the same time
BODY_SECONDS = 60  # in which such a picture must arrive
LEFT = 499  # the status, in metrics only, of a request whose client has left
KEEP_ALIVE = 75  # seconds: longer than balancers keep idle connections (60), or a request could meet one that closes
PAGE = Path(__file__).with_name("page.html")
Check = Callable[[bytes], dict[str, Any]]
log = logging.getLogger("dit.serve")


class Endpoints:
    """Serves requests of every contract: key, body, admission, waiting, answer."""

    def __init__(self, service: Service, keys: Keys, model: str, check: Check | None) -> None:
        self.service, self.keys, self.model, self.metrics = service, keys, model, Metrics(service)
        self.check, self.checking, self.verifications = check, asyncio.Lock(), 0
        # Cog's requests that are not finished, by user and id; None while one is admitted.
        self.predictions: dict[tuple[Key | None, str], Admitted | None] = {}

    async def generate(self, request: Request, contract: Contract, endpoint: str, id: str | None = None) -> Response:
        """Returns the answer to a request. It is cancelled if its client leaves."""
        headers: dict[str, str] = {}
        return await self._counted(self._answer(request, contract, endpoint, id, headers), contract, endpoint, headers)

    async def verify(self, request: Request) -> Response:
        """Returns what the picture in the body proves of its origin."""
        return await self._counted(self._verified(request), CONTRACTS["openai"], "/v1/verify", {})

    async def _counted(
        self, answering: Awaitable[dict[str, Any]], contract: Contract, endpoint: str, headers: dict[str, str]
    ) -> Response:
        """Returns an answer, or the reason why there is none, and counts it in the metrics."""
        try:
            status, answer = 200, await answering
        except (Cancelled, ClientDisconnect):
            status, answer = LEFT, contract.error(Refused("the request was cancelled", LEFT, "cancelled"))
            self.metrics.refused.labels("cancelled").inc()
        except Exception as error:
            refused = error if isinstance(error, Refused) else failed(error)
            status = contract.invalid if refused.status == 400 else refused.status
            answer = contract.error(refused)
            if refused.retry_after:
                headers["Retry-After"] = str(refused.retry_after)
            self.metrics.refused.labels(refused.code).inc()
        self.metrics.requests.labels(endpoint, str(status)).inc()
        return JSONResponse(answer, status, headers)

    async def _answer(
        self, request: Request, contract: Contract, endpoint: str, id: str | None, headers: dict[str, str]
    ) -> dict[str, Any]:
        """Returns the body of an answer, and adds what it cost to the headers."""
        key = self.keys.of(given_key(request.headers))
        origin = {"endpoint": endpoint} | ({} if key is None else {"key": key.name})
        body = await body_of(request, self.service.limits.body_bytes)
        ask = contract.read(body, self.service.menu, self.model)
        with self._named(key, id) as name:
            job = await run_in_threadpool(self.service.submit, ask, partial(self.keys.charge, key), origin)
            self.predictions[name] = job
            try:
                made = await self._wait(request, job)
            finally:
                self.keys.charge(key, -job.calls_left)  # what was not computed costs nothing
        self.metrics.count(made)
        headers["X-Dit-Cost"] = json.dumps(made.cost)
        answer = contract.write(ask, made)
        return answer if id is None else answer | times(id, body, made)

    async def _verified(self, request: Request) -> dict[str, Any]:
        self.keys.of(given_key(request.headers))
        if self.check is None:
            raise Refused("this server verifies no pictures", 404, "not_found")
        if self.verifications >= VERIFICATIONS:
            reason = f"the server verifies {VERIFICATIONS} pictures already; try again after 1 s"
            raise Refused(reason, 429, "overloaded", retry=1)
        self.verifications += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                content = await bytes_of(request, self.service.limits.picture_bytes)
            async with self.checking:  # one at a time, beside the requests that sample
                return await run_in_threadpool(self.check, content)
        except TimeoutError:
            raise Refused(f"the picture did not arrive within {BODY_SECONDS} s", 408, "timeout") from None
        except ValueError as error:
            raise Refused(first_line(error), code="invalid_picture") from None
        finally:
            self.verifications -= 1

    @contextmanager
    def _named(self, key: Key | None, id: str | None) -> Iterator[tuple[Key | None, str]]:
        """A block in which no other request of this user has this id, or a new one for None. Raises Refused if one
        has."""
        name = key, id or uuid4().hex
        if name in self.predictions:
            raise Refused(f"prediction {name[1][:100]} is running already", 409, "conflict")
        self.predictions[name] = None
        try:
            yield name
        finally:
            del self.predictions[name]

    async def _wait(self, request: Request, job: Admitted) -> Made:
        """Returns what was made. Raises Cancelled if the client leaves first, and cancels the job."""
        result: asyncio.Future[Any] = asyncio.wrap_future(job.result)
        left: asyncio.Future[Any] = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait([result, left], return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                self.service.cancel(job)
            return await result
        finally:
            left.cancel()

    def cancel(self, request: Request, id: str) -> Response:
        """Cancels a prediction of the user who sent the request."""
        try:
            job = self.predictions.get((self.keys.of(given_key(request.headers)), id))
        except Refused as refused:
            return JSONResponse(CONTRACTS["cog"].error(refused), refused.status)
        if job is None:
            return JSONResponse({"error": "there is no running prediction of this id"}, 404)
        self.service.cancel(job)
        return JSONResponse({"status": "canceled"})

    def pick_up(self, request: Request, id: str) -> Response:
        """Returns a picture that was held for review, to the user who asked for it, if it is approved."""
        try:
            key = self.keys.of(given_key(request.headers))
            content = self.service.pick_up(id, None if key is None else key.name)
            self.metrics.requests.labels("/held", "200").inc()
            self.metrics.pictures.inc()
            return Response(content, media_type="image/png")
        except Exception as error:
            refused = error if isinstance(error, Refused) else failed(error)
            self.metrics.requests.labels("/held", str(refused.status)).inc()
            self.metrics.refused.labels(refused.code).inc()
            return JSONResponse(CONTRACTS["openai"].error(refused), refused.status)

    def readiness(self) -> tuple[str, int]:
        if self.service.draining:
            return "draining", 503
        return ("ready", 200) if self.service.ready else ("starting", 503)


def times(id: str, body: Mapping[str, Any], made: Made) -> dict[str, Any]:
    """Returns the id, the input and the times of one of Cog's predictions."""
    end = datetime.now(UTC)
    start = datetime.fromtimestamp(end.timestamp() - made.seconds, UTC)
    found = {"created_at": start, "started_at": start, "completed_at": end}
    return {"id": id, "input": body.get("input")} | {name: at.isoformat() for name, at in found.items()}


def failed(error: Exception) -> Refused:
    """Returns the answer to a request that failed here, without the reason, which may name files of this machine.
    stderr has it in one line, or, for errors that no user can correct, the traceback."""
    # A full disk, a certificate that expired, a picture without numbers.
    known = isinstance(error, ValueError | OSError)
    log.error("a request failed: %s", first_line(error), exc_info=None if known else error)
    return Refused("the request failed here; the operator of the server sees why", 500, "server_error")


def app_of(service: Service, keys: Keys, model: str, check: Check | None = None) -> FastAPI:
    """Returns the application. model: its name. check: says what the content of a picture's file proves of its origin,
    as `dit.generation.verification.findings`; raises ValueError for what is no picture."""
    app = FastAPI(title=f"dit: {model}", docs_url=None, redoc_url=None, openapi_url=None)
    ends = Endpoints(service, keys, model, check)

    @app.post("/v1/images/generations")
    async def openai(request: Request) -> Response:
        return await ends.generate(request, CONTRACTS["openai"], "/v1/images/generations")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "dit"}]}

    @app.post("/predictions")
    async def predictions(request: Request) -> Response:
        return await ends.generate(request, CONTRACTS["cog"], "/predictions", uuid4().hex)

    @app.put("/predictions/{id}")
    async def prediction(request: Request, id: str) -> Response:
        return await ends.generate(request, CONTRACTS["cog"], "/predictions", id)

    @app.post("/predictions/{id}/cancel")
    async def cancel(request: Request, id: str) -> Response:
        return ends.cancel(request, id)

    @app.get("/held/{id}")
    def held(request: Request, id: str) -> Response:  # in a thread, as it reads the log
        return ends.pick_up(request, id)

    @app.get("/health-check")
    async def health() -> dict[str, str]:
        return {"status": "READY" if ends.readiness()[1] == 200 else "STARTING"}

    @app.post("/invocations")
    async def sagemaker(request: Request) -> Response:
        return await ends.generate(request, CONTRACTS["sagemaker"], "/invocations")

    @app.post("/model/{name}/invoke")
    async def bedrock(request: Request, name: str) -> Response:
        return await ends.generate(request, CONTRACTS["titan"], "/model/invoke")

    @app.post("/v1/verify")
    async def verify(request: Request) -> Response:
        return await ends.verify(request)

    @app.get("/readyz")
    @app.get("/ping")
    async def ready() -> Response:
        word, status = ends.readiness()
        return JSONResponse({"status": word}, status)

    @app.get("/healthz")
    async def alive() -> Response:
        living = service.batcher.alive
        return JSONResponse({"status": "alive" if living else "the network's thread has ended"}, 200 if living else 500)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(ends.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def page() -> Response:
        menu = service.menu
        limits, sizes = menu.limits, list(map(size_text, menu.sizes))
        shown = {"model": model, "keys": bool(keys.known), "samplers": list(menu.samplers), "sizes": sizes}
        shown |= {"steps": menu.steps, "scale": menu.scale}
        shown |= {"most_steps": limits.steps, "most_pictures": limits.pictures}
        text = json.dumps(shown).replace("<", "\\u003c")
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("{{MENU}}", text))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        reason = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return JSONResponse({"error": {"message": reason, "code": "not_found"}}, error.status_code)

    return app


class Server(uvicorn.Server):
    """Refuses new requests as soon as it is told to stop, and finishes those that it has admitted, for at most
    `drain_seconds`."""

    def __init__(self, service: Service, app: FastAPI, drain_seconds: float) -> None:
        self.service = service
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        config.timeout_keep_alive = KEEP_ALIVE
        config.timeout_graceful_shutdown = max(1, round(drain_seconds))
        super().__init__(config)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises ValueError if the port is in use or not allowed."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ValueError(f"host={host} port={port}: {error.strerror}; choose another with port=NUMBER") from None
    return found


def running(
    service: Service, keys: Keys, model: str, where: socket.socket, drain_seconds: float, check: Check | None = None
) -> None:
    """Prints the address and serves until SIGTERM or SIGINT, then finishes what was admitted, for at most
    `drain_seconds`."""
    service.warm_up()
    host, port = where.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server = Server(service, app_of(service, keys, model, check), drain_seconds)
    try:
        server.run(sockets=[where])
    finally:
        service.close(0)
