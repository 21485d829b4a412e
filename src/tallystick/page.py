"""The page at `/` of a proxy: its files, what it asks to be told, and what it may do.

Whoever opens the page is given its token with it, and whatever the page asks carries that token. Another
page's scripts can neither read it nor send it (proxy.Door), so they can do nothing here in the payer's name.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tallystick import happenings
from tallystick.errors import ConfigError, Refusal, TallystickError
from tallystick.feed import Feed
from tallystick.gateway import EVENTS, refused
from tallystick.overview import Overview
from tallystick.proof import MAX_JOB_ID
from tallystick.spending import Spender
from tallystick.types import Completion, JobId

FILES = Path(__file__).parent / "page"
TOKEN = "tally-page"
"""The header that the page's token comes in."""
PLACE = "{{ token }}"
"""Where it stands in index.html."""
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            *(f"{what}-src 'self'" for what in ("script", "style", "img", "connect")),
            *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
"""Nothing comes from elsewhere, nothing goes elsewhere, and nobody puts the page into theirs."""

Form = TypeVar("Form")
Action = Callable[[Request], Awaitable[Any]]


class _Opening(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    deposit: str


class _ToppingUp(msgspec.Struct, forbid_unknown_fields=True):
    amount: str


class _Completing(msgspec.Struct, forbid_unknown_fields=True):
    on_chain: bool = False


def is_open(path: str) -> bool:
    """True for what anybody may read: without the key, if there is one, the page can ask for nothing."""
    return path == "/" or path.startswith("/page/files/")


class Page:
    """The routes of one payer's page."""

    def __init__(self, spender: Spender) -> None:
        self._spender = spender
        self._overview = Overview(spender)
        self._feed = Feed()
        self._token = secrets.token_urlsafe(32)
        self._index = (FILES / "index.html").read_text(encoding="utf-8").replace(PLACE, self._token)
        self._files = {file.name: file.read_bytes() for file in FILES.iterdir() if file.suffix in KINDS}
        spender.on(lambda job, event: self._feed.tell(happenings.told(spender.wallet.chain, job, event)))

    @property
    def routes(self) -> list[Route]:
        """For the proxy's application, behind its door."""
        job = "/page/jobs/{job_id:int}"
        return [
            Route("/", self.index),
            Route("/page/files/{name}", self.file),
            Route("/page/overview", self._answering(self.overview)),
            Route("/page/events", self.events),
            Route("/page/jobs", self._answering(self.open), methods=["POST"]),
            Route(f"{job}/top-up", self._answering(self.top_up), methods=["POST"]),
            Route(f"{job}/complete", self._answering(self.complete), methods=["POST"]),
            Route(f"{job}/reclaim", self._answering(self.reclaim), methods=["POST"]),
            Route(f"{job}/receipt", self._answering(self.receipt)),
            Route("/page/withdraw", self._answering(self.withdraw), methods=["POST"]),
        ]

    def close(self) -> None:
        """Ends what pages listen to."""
        self._feed.close()

    # Files

    async def index(self, request: Request) -> Response:
        """The page, with its token."""
        return Response(self._index, media_type="text/html", headers=POLICY)

    async def file(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params["name"]
        if name not in self._files:
            return _refused(Refusal("not_found"))
        return Response(self._files[name], media_type=KINDS[Path(name).suffix], headers=POLICY)

    # What the page asks

    def _answering(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                self._check_token(request)
                told = await action(request)
            except TallystickError as error:
                return _refused(error)
            content = told if isinstance(told, bytes) else orjson.dumps(told)
            return Response(content, media_type="application/json", headers=POLICY)

        return answer

    def _check_token(self, request: Request) -> None:
        shown = request.headers.get(TOKEN, "")
        if not hmac.compare_digest(shown.encode(), self._token.encode()):
            raise Refusal(
                "page_refused", "The page's token is missing, or of another run: load the page again."
            )

    async def events(self, request: Request) -> Response:
        """What happens from now on."""
        try:
            self._check_token(request)
        except Refusal as refusal:
            return _refused(refusal)
        return StreamingResponse(self._feed.listen(), headers={**POLICY, **EVENTS})

    async def overview(self, request: Request) -> Any:
        """How things stand."""
        return await self._overview.whole()

    async def receipt(self, request: Request) -> Any:
        """The evidence of a job, sealed: what `tally verify` checks."""
        return await self._overview.evidence(_job_id(request))

    # What it may do

    async def open(self, request: Request) -> Any:
        """Opens a job for a model."""
        form = await _read(request, _Opening)
        job = await self._spender.open(form.model, self._units(form.deposit))
        return {"job_id": job.id}

    async def top_up(self, request: Request) -> Any:
        """Adds to a job."""
        form = await _read(request, _ToppingUp)
        job = await self._spender.top_up(_job_id(request), self._units(form.amount))
        return {"job_id": job.id}

    async def complete(self, request: Request) -> Any:
        """Completes a job, or asks on chain for that, past its host."""
        form, job_id = await _read(request, _Completing), _job_id(request)
        if form.on_chain:
            return {"job_id": job_id, "closes_at": await self._spender.ask_on_chain(job_id)}
        completion = await self._spender.complete(job_id)
        return await self._came(completion)

    async def reclaim(self, request: Request) -> Any:
        """Takes the rest of a job back."""
        return await self._came(await self._spender.reclaim(_job_id(request)))

    async def _came(self, completion: Completion) -> Any:
        wallet = self._spender.wallet
        return happenings.told(wallet.chain, await wallet.job(completion.job_id), completion)

    async def withdraw(self, request: Request) -> Any:
        """Pays out what the contract keeps for the payer."""
        purse = self._spender.wallet
        call = purse.chain.withdraw(self._spender.asset, self._overview.payer)
        return {"tx": (await purse.transact(call)).hash}

    def _units(self, amount: str) -> int:
        try:
            return self._spender.wallet.units(amount, self._spender.asset, "The amount")
        except ConfigError as error:
            raise Refusal("invalid_request", f"{error}.", param="amount") from None


def _refused(error: TallystickError) -> Response:
    answer = refused(error)
    assert isinstance(answer.body, bytes)
    return Response(answer.body, answer.status, headers=POLICY, media_type="application/json")


def _job_id(request: Request) -> JobId:
    number: int = request.path_params["job_id"]
    if not 0 < number <= MAX_JOB_ID:
        raise Refusal("invalid_request", f"There is no job {number}.", param="job_id")
    return JobId(number)


async def _read(request: Request, form: type[Form]) -> Form:
    try:
        return msgspec.json.decode(await request.body(), type=form)
    except msgspec.DecodeError as error:
        raise Refusal("invalid_request", f"{error}.") from error
