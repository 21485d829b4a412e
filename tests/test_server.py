"""The routes of protocol §7, over real sockets: what a client sees, and what is refused how."""

from __future__ import annotations

import asyncio
import io

import pytest

from tallystick import wire
from tallystick.peer import secure
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tests.hosting import CHAT, Host, Hosting, started
from tests.paying import PROMPT, Signer, until

# Refusals


async def test_unknown_routes_and_methods(hosting: Hosting) -> None:
    """What is no route, and no method of a route, is a problem like any other."""
    host = await hosting.serve()
    assert (await host.problem("GET", "/nothing"))["code"] == "not_found"
    async with host.http.get("/v1/embeddings") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")
    assert (await host.problem("DELETE", "/v1/host"))["code"] == "not_allowed"
    async with host.http.get(CHAT) as answer:
        assert answer.status == 405
        assert answer.headers["allow"] == "POST"
        assert (await answer.json())["error"]["code"] == "not_allowed"


async def test_malformed(hosting: Hosting) -> None:
    """A body that cannot be used is refused by its member's name, before anything else is looked at."""
    host = await hosting.serve()
    signer = await hosting.signer()
    status, error = await host.error(signer, n=0)
    assert (status, error["code"], error["param"]) == (400, "invalid_request", "n")
    async with host.http.post(CHAT, data=b"{", headers=signer.headers()) as answer:
        assert (await answer.json())["error"]["code"] == "invalid_request"
    body = io.BytesIO(bytes(wire.MAX_BODY + 1))
    async with host.http.post(CHAT, data=body, headers=signer.headers()) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "too_large"


async def test_access(hosting: Hosting) -> None:
    """Without a bearer that holds nothing is served, and 401 says which scheme is wanted."""
    host = await hosting.serve()
    signer = await hosting.signer()
    async with host.http.post(CHAT, json=signer.body()) as answer:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await answer.json())["error"]["code"] == "access_missing"
    path = f"/v1/jobs/{signer.job.id}"
    for headers, code in (
        ({"Authorization": "Bearer sk-123"}, "access_malformed"),
        ({"Authorization": "Basic dTpw"}, "access_malformed"),
        (signer.headers(expires_at=1), "access_expired"),
        (signer.headers() | {"X-Forwarded-Proto": "http"}, "tls_required"),
    ):
        assert (await host.problem("GET", path, headers=headers))["code"] == code
    other = f"/v1/jobs/{signer.job.id + 1}"
    problem = await host.problem("GET", other, headers=signer.headers())
    assert problem["code"] == "job_mismatch"
    assert problem["detail"].startswith("The path names job")


@pytest.mark.parametrize("job_id", ["0", "-1", str(2**53), str(2**257), "9" * 5000, "1.5", "one", "٣"])
async def test_what_no_job_can_be_called(hosting: Hosting, job_id: str) -> None:
    """A path with a number that no job can have is answered before the chain is asked for it."""
    host = await hosting.serve()
    signer = await hosting.signer()
    end = {"end": "0x" + signer.end().hex()}
    for method, route in (("GET", ""), ("POST", "/receipts"), ("POST", "/complete")):
        path = f"/v1/jobs/{job_id}{route}"
        assert (await host.problem(method, path, json=end, headers=signer.headers()))["code"] == "not_found"


@pytest.mark.parametrize(
    ("scheme", "peer", "forwarded", "good"),
    [
        ("https", "203.0.113.9", None, True),
        ("wss", "203.0.113.9", "http", True),
        ("http", "127.0.0.1", None, True),
        ("http", "::1", None, True),
        ("http", "::ffff:127.0.0.1", None, True),
        ("http", None, None, True),
        ("http", "127.0.0.1", "https", True),
        ("http", "127.0.0.1", "http", False),
        ("http", "203.0.113.9", None, False),
        ("http", "203.0.113.9", "https", False),
        ("http", "10.0.0.7", "https", True),
        ("http", "10.0.0.7", "https, http", False),
        ("http", "10.0.0.7", None, False),
        ("http", "10.0.0.8", "https", False),
    ],
)
def test_in_the_clear(scheme: str, peer: str | None, forwarded: str | None, good: bool) -> None:
    """A bearer is taken over TLS, from this machine, or from a proxy trusted to have ended the TLS."""
    assert secure(scheme, peer, forwarded, ["10.0.0.7/32"]) is good


async def test_fault(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the node's own is told as one, without its innards."""
    host = await hosting.serve()
    monkeypatch.setattr(host.node, "quote", lambda: 1 / 0)
    problem = await host.problem("GET", "/v1/host")
    assert (problem["code"], problem["status"]) == ("node_failed", 500)
    assert "division" not in str(problem)


# Jobs


async def test_job(hosting: Hosting) -> None:
    """The host's view of a job is there before its first request, and follows it to its end."""
    host = await hosting.serve()
    signer = await hosting.signer()
    path = f"/v1/jobs/{signer.job.id}"
    async with host.http.get(path, headers=signer.headers()) as answer:
        view = await answer.json()
    assert (view["status"], view["deposit"], view["left"], view["receipt"]) == (
        "open",
        "2000000",
        "2000000",
        None,
    )
    await host.ask(signer)
    async with host.http.post(f"{path}/complete", json={"end": "0x" + signer.end().hex()}) as answer:
        assert answer.status == 202
        view = await answer.json()
    assert (view["ended"], view["counted"], view["receipt"]["tokens"]) == (
        True,
        {"prompt_tokens": PROMPT, "tokens": 60},
        60,
    )


async def test_stored_receipt(hosting: Hosting) -> None:
    """A receipt that comes again is answered with the stored one; one of another job is refused."""
    host = await hosting.serve()
    signer = await hosting.signer()
    await host.ask(signer)
    path = f"/v1/jobs/{signer.job.id}/receipts"
    assert signer.signs.last is not None
    last = wire.receipt_out(signer.signs.last)
    async with host.http.post(path, json=last, headers=signer.headers()) as answer:
        assert (await answer.json())["stored"] == last
    problem = await host.problem("POST", "/v1/jobs/999/receipts", json=last, headers=signer.headers())
    assert problem["code"] == "job_mismatch"


async def test_offer(hosting: Hosting) -> None:
    """The quote and the models say what a job has to look like; the probes say whether it would be served."""
    host = await hosting.serve()
    async with host.http.get("/v1/host") as answer:
        quote = await answer.json()
    assert quote["host"] == hosting.devnet.accounts.host.address
    assert quote["paid"]
    dollar = {"per_million": "900000", "prompt_per_million": "200000"}
    assert quote["models"] == [{"name": "scripted", "prices": {hosting.devnet.dollar: dollar}}]
    async with host.http.get("/v1/models") as answer:
        [model] = (await answer.json())["data"]
    assert (model["id"], model["object"], model["prices"]) == (
        "scripted",
        "model",
        {hosting.devnet.dollar: dollar},
    )
    for probe in ("/healthz", "/readyz"):
        async with host.http.get(probe) as answer:
            assert answer.status == 200
    async with host.http.get("/readyz") as answer:
        assert (await answer.json())["engines"] == [{"streams": 0, "why": None}]


async def test_stopping(hosting: Hosting) -> None:
    """A server that stops lets its replies end, with their reason, before it closes their connections."""
    engine = ScriptedEngine(Script((*say("a"), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    asking = asyncio.create_task(host.ask(signer))
    await started(engine)
    await until(lambda: _delivered(host, signer))
    await host.node.desk.stop(5.0)
    *_, last, done = await asking
    assert (last["tally"]["reason"], done) == ("node_stopping", {"done": True})
    status, error = await host.error(signer)
    assert (status, error["code"]) == (503, "node_stopping")
    async with host.http.get("/readyz") as answer:
        assert answer.status == 503


async def _delivered(host: Host, signer: Signer) -> bool:
    view = await host.node.desk.view(signer.job.id, signer.access())
    return bool(view["counted"]["tokens"])
