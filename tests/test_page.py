"""The page of a proxy: who may ask what, and all of it in Chromium against a real node and a real chain."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser
from starlette.datastructures import Headers

from tallystick import lookout, pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.config import DAY, Secret
from tallystick.devnet import Devnet
from tallystick.errors import Refusal
from tallystick.evidence import Evidence
from tallystick.in_use import InUse
from tallystick.page import PLACE, TOKEN
from tallystick.proxy import Door
from tallystick.testing.engine import Hang, Script, say
from tallystick.types import JobId, JobStatus, Prices, Totals
from tests import browser as browsing
from tests.browser import DESKTOP, NARROW, PHONE, Visit, visiting
from tests.buying import DEPOSIT, Bench, Proxy
from tests.conftest import missing
from tests.paying import register, until
from tests.stories.parties import free_port

AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
WORDS = [f"notch{number} " for number in range(230)]
READY = "!document.querySelector('#model').disabled"
ANSWERED = "document.querySelector('#stop').disabled && document.querySelector('.exchange')"


@pytest.fixture
async def bench(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = browsing.installed() or missing("Chromium (Debian's chromium)")
    async with browsing.chromium(path) as browser:
        yield browser


def base(proxy: Proxy) -> str:
    return proxy.url.removesuffix("/v1")


@asynccontextmanager
async def asking(proxy: Proxy, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(base(proxy), headers=headers) as http:
        yield http


async def token_of(proxy: Proxy) -> str:
    """As the page reads it."""
    async with asking(proxy) as http, http.get("/") as answer:
        text = await answer.text()
    return text.split('name="tally-page" content="')[1].split('"')[0]


async def job_of(bench: Bench, number: int) -> Any:
    job = await bench.chain.job(JobId(number))
    assert job is not None
    return job


# Who may ask

ASKED = [
    ("GET", "/page/overview"),
    ("GET", "/page/events"),
    ("GET", "/page/jobs/1/receipt"),
    ("POST", "/page/jobs"),
    ("POST", "/page/jobs/1/top-up"),
    ("POST", "/page/jobs/1/complete"),
    ("POST", "/page/jobs/1/reclaim"),
    ("POST", "/page/withdraw"),
]


@pytest.mark.parametrize(("method", "path"), ASKED)
async def test_nothing_is_told_or_done_without_the_pages_token(bench: Bench, method: str, path: str) -> None:
    """Without it, and with another run's, every route of the page refuses, and no money moves."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    before = await bench.money()
    for headers in ({}, {TOKEN: "of-another-run"}):
        async with asking(proxy, **headers) as http, http.request(method, path, json={}) as answer:
            assert answer.status == 403
            assert (await answer.json())["error"]["code"] == "page_refused"
    assert await bench.money() == before


@pytest.mark.parametrize(
    "sent",
    [
        {"Host": "rebound.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_foreign_page_is_not_given_the_token(bench: Bench, sent: dict[str, str]) -> None:
    """Under a name that was rebound, or from another origin, `/` says nothing, and nobody may read it."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    token = await token_of(proxy)
    async with asking(proxy, **sent) as http, http.get("/") as answer:
        assert answer.status == 403
        assert token not in await answer.text()
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/page/files/style.css", "/page/files/page.js", "/page/files/mark.svg"]
)
async def test_nothing_comes_from_elsewhere_and_nobody_frames_it(bench: Bench, path: str) -> None:
    """The policy of every file lets the page load from and speak to its own origin alone."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    async with asking(proxy) as http, http.get(path) as answer:
        policy = answer.headers["content-security-policy"]
        assert answer.status == 200
        assert "://" not in (await answer.text()).replace("http://www.w3.org/2000/svg", "").replace(
            "^https?:\\/\\/", ""
        )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert {rules[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert rules["frame-ancestors"] == rules["form-action"] == rules["base-uri"] == "'none'"


async def test_a_token_is_of_one_run(bench: Bench) -> None:
    """Another run has another one, and neither is what stands in the file."""
    url = await bench.serve(Script(say("a")))
    first = await bench.proxy(url)
    token = await token_of(first)
    await first.parts.aclose()
    assert await token_of(await bench.proxy(url)) not in (token, PLACE, "")


async def test_with_a_key_the_page_is_there_and_tells_nothing_without_it(bench: Bench) -> None:
    """Its files are anybody's; what they ask needs the proxy's key beside the page's token."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))), api_key="secret")
    token = await token_of(proxy)
    async with asking(proxy, **{TOKEN: token}) as http, http.get("/page/overview") as answer:
        assert answer.status == 401
    held = {TOKEN: token, "Authorization": "Bearer secret"}
    async with asking(proxy, **held) as http, http.get("/page/overview") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [("http://box.example:4402", True), ("http://evil.example:4402", False), ("https://evil.example", False)],
)
def test_on_a_network_the_page_is_its_own_origins_alone(origin: str, let_in: bool) -> None:
    """Where any name leads to the proxy, the page may come from the name that it asks under, with the key."""
    door = Door("0.0.0.0", 4402, Secret("secret"))
    given = {"host": "box.example:4402", "origin": origin, "content-type": "application/json"}
    headers = Headers({**given, "authorization": "Bearer secret"})
    if let_in:
        door.check("POST", "/page/jobs", headers)
        return
    with pytest.raises(Refusal) as refused:
        door.check("POST", "/page/jobs", headers)
    assert refused.value.code == "page_refused"


# What it is told


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/page/jobs", {"model": "scripted", "deposit": "2.5"}, 402, "cap_reached"),
        ("/page/jobs", {"model": "scripted", "deposit": "0"}, 400, "invalid_request"),
        ("/page/jobs", {"model": "scripted", "deposit": "1e3"}, 400, "invalid_request"),
        ("/page/jobs", {"model": "scripted", "deposit": "0.0000001"}, 400, "invalid_request"),
        ("/page/jobs", {"model": "scripted", "deposit": 2}, 400, "invalid_request"),
        ("/page/jobs", {"model": "another", "deposit": "1"}, 404, "model_unknown"),
        ("/page/jobs/77/top-up", {"amount": "1"}, 404, "job_unknown"),
        ("/page/jobs/0/complete", {}, 400, "invalid_request"),
        ("/page/jobs/1/complete", {"onchain": True}, 400, "invalid_request"),
        ("/page/withdraw", {}, 402, "payment_failed"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_its_mend(
    bench: Bench, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    """No money moves, and the answer has a code, whose move it is, and what mends it."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    before = await bench.money()
    headers = {TOKEN: await token_of(proxy)}
    async with asking(proxy, **headers) as http, http.post(path, json=body) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (status, code)
        assert error["move"]
        assert error["detail"]
    assert await bench.money() == before


# In Chromium


async def test_chat_top_up_and_refund_by_keyboard(bench: Bench, browser: Browser) -> None:
    """From opening to refund without a mouse; what the page says is what the chain has, to the unit."""
    proxy = await bench.proxy(await bench.serve(Script(say(*WORDS))), Caps(DEPOSIT, 2 * DEPOSIT))
    before, _ = await bench.money()
    async with visiting(browser, base(proxy), DESKTOP) as visit:
        await visit.until(READY)
        await _open(visit, "0.5")
        assert (await job_of(bench, 1)).deposit == 500_000
        await visit.tab_to("#message")
        await visit.page.keyboard.type("Why was the stick split?")
        await visit.press("Enter")
        await visit.until(ANSWERED)
        assert await visit.text(".answer .words") == "".join(WORDS).strip()
        assert await visit.text(".figures .tokens") == "230"
        await visit.until("document.querySelector('.signed-tokens').textContent === '230'")
        await visit.until("document.querySelector('.settled-tokens').textContent === '200'")
        shown = await visit.text(".figures .cost")
        await visit.tab_to("[data-action=top_up]")
        await visit.press("Enter")
        await visit.page.keyboard.type("0.25")
        await visit.press("Enter")
        await visit.until("document.querySelector('.job .deposit').textContent.startsWith('0.75')")
        assert (await job_of(bench, 1)).deposit == 750_000
        await visit.tab_to("[data-action=complete]")
        await visit.press("Enter")
        await visit.tab_to("#completing .main")
        await visit.press("Enter")
        await visit.until("!document.querySelector('#completing').open")
        closed = await job_of(bench, 1)
        refunded = await visit.page.text_content("#closed-jobs .refundable")
        assert await visit.page.evaluate("document.activeElement.id") == "open"
        assert visit.complaints == []
    after, _ = await bench.money()
    value = pricing.value(closed.settled, closed.prices)
    assert closed.status is JobStatus.CLOSED
    assert closed.settled.tokens == 230
    assert shown == f"{pricing.from_units(value, 12)} tUSD"
    assert refunded == f"{pricing.from_units(750_000 - closed.owed, 6)} tUSD"
    assert before - after == closed.owed == value // pricing.MILLION


async def _open(visit: Visit, deposit: str) -> None:
    await visit.tab_to("#open")
    await visit.press("Enter")
    await visit.tab_to("#opening [name=amount]")
    await visit.press("Control+a")
    await visit.page.keyboard.type(deposit)
    await visit.press("Enter")
    await visit.until("document.querySelector('#jobs .job[data-status=open]')")


async def test_tokens_cost_and_checkpoints_are_shown_as_they_happen(bench: Bench, browser: Browser) -> None:
    """While the host is at it, the page has what came, what that costs, and how far it is signed for."""
    gate = asyncio.Event()
    script = Script((*say(*WORDS[:150]), gate, *say(*WORDS[150:])))
    proxy = await bench.proxy(await bench.serve(script))
    async with visiting(browser, base(proxy), PHONE) as visit:
        await visit.until(READY)
        await visit.page.fill("#message", "Why?")
        await visit.press("Enter")
        await visit.until("document.querySelector('.tokens')?.textContent === '150'")
        await visit.until("Number(document.querySelector('.signed-tokens').textContent) >= 100")
        cost = await visit.text(".figures .cost")
        notches = await visit.page.locator(".stick .notch").count()
        gate.set()
        await visit.until(ANSWERED)
        assert await visit.text(".figures .tokens") == "230"
        assert visit.complaints == []
    [used] = proxy.spender.jobs
    prompt = used.session.receipted.prompt_tokens
    prices = used.session.job.prices
    assert (
        cost
        == f"{pricing.from_units(150 * prices.per_million + prompt * prices.prompt_per_million, 12)} tUSD"
    )
    assert notches >= 1


async def test_a_screen_reader_is_not_flooded(bench: Bench, browser: Browser) -> None:
    """Of an answer of 230 tokens the live region tells its beginning, host, job, and its end with cost."""
    proxy = await bench.proxy(await bench.serve(Script(say(*WORDS))))
    async with visiting(browser, base(proxy), PHONE) as visit:
        await visit.until(READY)
        await visit.page.evaluate(_LISTEN)
        await visit.page.fill("#message", "Why?")
        await visit.press("Enter")
        await visit.until(ANSWERED)
        told = await visit.page.evaluate("window.told")
        live = await visit.page.evaluate("document.querySelector('#conversation').closest('[aria-live]')")
    assert live is None
    assert len(told) <= 4
    assert told[-1].startswith("The answer has ended: 230 tokens, 0.000")


_LISTEN = """() => {
    window.told = [];
    const status = document.querySelector("#status");
    new MutationObserver(() => told.push(status.textContent)).observe(status, { childList: true });
}"""


async def test_a_reply_that_is_stopped_is_paid_for_as_far_as_it_came(bench: Bench, browser: Browser) -> None:
    """Stop ends the request at the host as well, and the next message finds the page ready."""
    url = await bench.serve(Script((*say(*WORDS[:30]), Hang())), Script(say("b")))
    proxy = await bench.proxy(url)
    async with visiting(browser, base(proxy), PHONE) as visit:
        await visit.until(READY)
        await visit.page.fill("#message", "Why?")
        await visit.press("Enter")
        await visit.until("document.querySelector('.tokens')?.textContent === '30'")
        await visit.tab_to("#stop")
        await visit.press("Enter")
        await visit.until(ANSWERED)
        assert await visit.page.evaluate("document.activeElement.id") == "message"
        [used] = proxy.spender.jobs
        await until(lambda: _idle(used))
        await used.session.flush()
        assert used.session.receipted.tokens == 30


async def _idle(used: InUse) -> bool:
    return used.requests == 0


async def test_a_refusal_is_shown_with_its_mend(bench: Bench, browser: Browser) -> None:
    """A message that the caps do not allow says so where its answer would be, and whose move it is."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))), Caps(100, 100))
    async with visiting(browser, base(proxy), NARROW) as visit:
        await visit.until(READY)
        await visit.page.fill("#message", "Why?")
        await visit.page.fill("#most", "4000")
        await visit.page.focus("#message")
        await visit.press("Enter")
        await visit.until(ANSWERED)
        told = await visit.text(".exchange .problem")
        assert "--deposit leaves 100" in told
        assert "Your move: " in told
        assert "No answer." in await visit.page.text_content("#status")  # type: ignore[operator]
    assert proxy.spender.jobs == []


async def test_money_comes_back_past_a_host_that_is_gone(bench: Bench, browser: Browser) -> None:
    """The page says that the host is gone, asks on chain, and reclaims when its time is over."""
    node = await bench.parts.enter_async_context(AsyncExitStack())
    proxy = await bench.proxy(await bench.serve(Script(say("a")), parts=node))
    job = await proxy.spender.open("scripted", DEPOSIT)
    await node.aclose()
    async with visiting(browser, f"{base(proxy)}/#money", PHONE) as visit:
        await visit.page.click("[data-action=complete]")
        await visit.page.click("#completing .main")
        await visit.until("!document.querySelector('#completing .problem').hidden")
        assert "cannot be reached" in await visit.text("#completing .problem")
        await visit.page.check("#completing [name=on_chain]")
        await visit.page.click("#completing .main")
        await visit.until("document.querySelector('.job[data-status=completing]')")
        await bench.devnet.increase_time(10 * DAY)
        await visit.page.reload()
        await visit.page.click("[data-action=reclaim]")
        await visit.until("document.querySelector('#closed-jobs .job')")
    assert (await job_of(bench, job.id)).status is JobStatus.CLOSED
    assert (await bench.money())[1] == 0


async def test_receipts_can_be_downloaded(bench: Bench, browser: Browser, tmp_path: Path) -> None:
    """The file is evidence that holds, of all that was signed for."""
    proxy = await bench.proxy(await bench.serve(Script(say(*WORDS[:120]))))
    await proxy.ask()
    [used] = proxy.spender.jobs
    await used.session.flush()
    async with visiting(browser, f"{base(proxy)}/#money", DESKTOP) as visit:
        async with visit.page.expect_download() as downloading:
            await visit.page.click("[data-action=receipt]")
        download = await downloading.value
        await download.save_as(tmp_path / "receipt.json")
        assert download.suggested_filename == f"job-{used.session.job.id}-receipt.json"
    evidence = Evidence((tmp_path / "receipt.json").read_bytes())
    assert [check.name for check in evidence.checks() if not check.passed] == []
    assert evidence.signed.tokens == 120


async def test_a_host_that_is_gone_is_told_with_its_mend(bench: Bench, browser: Browser) -> None:
    """The page stands, says which host does not answer, and shows what is in the wallet all the same."""
    proxy = await bench.proxy(f"http://127.0.0.1:{free_port()}")
    async with visiting(browser, base(proxy), NARROW) as visit:
        await visit.until("!document.querySelector('#trouble').hidden")
        assert "No host answers at" in await visit.text("#trouble")
        assert await visit.page.text_content("#wallet") == "1000000.000000 tUSD"


async def test_the_page_counts_money_as_the_package_does(bench: Bench, browser: Browser) -> None:
    """Amounts and costs of any size are the same digits in the page's script and in pricing.py."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    dice = random.Random("amounts")
    cases = [[dice.getrandbits(dice.randrange(1, 60)) for _ in range(4)] for _ in range(300)]
    script = """async (cases) => {
        const { cost, digits } = await import("/page/files/amounts.js");
        return cases.map(([tokens, prompt_tokens, price, prompt]) => cost({ tokens, prompt_tokens },
            { price: digits(BigInt(price), 6), prompt_price: digits(BigInt(prompt), 6) }, 6));
    }"""
    async with visiting(browser, base(proxy), PHONE) as visit:
        bounded = [[each % 2**50 for each in case] for case in cases]  # a double's whole numbers, in JSON
        counted = await visit.page.evaluate(script, bounded)
    values = [pricing.value(Totals(prompt, tokens), Prices(*rest)) for tokens, prompt, *rest in bounded]
    assert counted == [pricing.from_units(value, 12) for value in values]


async def test_the_page_says_when_the_proxy_is_gone(bench: Bench, browser: Browser) -> None:
    """A proxy that ends lets its pages go at once, and they say what brings it back."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    async with visiting(browser, base(proxy), PHONE) as visit:
        await visit.until(READY)
        await visit.until("document.querySelector('#outage').hidden")
        await proxy.parts.aclose()
        await visit.until("!document.querySelector('#outage').hidden")
        assert "tally proxy" in await visit.text("#outage")


async def test_a_key_is_asked_for_where_the_proxy_wants_one(bench: Bench, browser: Browser) -> None:
    """A wrong one is said to be wrong; with the right one the page goes on."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))), api_key="secret")
    async with visiting(browser, base(proxy), PHONE) as visit:
        for key in ("wrong", "secret"):
            await visit.until("document.querySelector('#unlocking').open")
            await visit.page.fill("#unlocking input", key)
            await visit.press("Enter")
            await visit.until(
                "!document.querySelector('#unlocking').open || "
                "!document.querySelector('#unlocking .problem').hidden"
            )
        await visit.until(READY)


@pytest.mark.parametrize("size", [NARROW, PHONE, DESKTOP], ids=["narrow", "phone", "desktop"])
async def test_the_page_is_accessible_and_stands_still(bench: Bench, browser: Browser, size: Any) -> None:
    """In light and dark, axe finds nothing; nothing scrolls sideways, and nothing jumps while it loads."""
    if not AXE.exists():
        missing("axe-core (npm ci)")
    proxy = await bench.proxy(await bench.serve(Script(say(*WORDS[:120]))))
    for scheme in ("light", "dark"):
        async with visiting(browser, base(proxy), size, color_scheme=scheme, bypass_csp=True) as visit:
            await visit.until(READY)
            assert await visit.page.evaluate(_JUMPS) == 0
            place = await _place(visit, "#ask")
            await visit.page.add_script_tag(path=AXE)
            assert await _violations(visit) == []
            await visit.page.fill("#message", "Why?")
            await visit.press("Enter")
            await visit.until(ANSWERED)
            assert await _place(visit, "#ask") == place
            assert await _violations(visit) == []
            await visit.page.evaluate("location.hash = '#money'")
            await visit.until("document.querySelector('#jobs .job')")
            assert await _violations(visit) == []
            await visit.page.click("[data-action=top_up]")
            assert await _violations(visit) == []
            assert await visit.page.evaluate("document.documentElement.scrollWidth") <= size["width"]


async def _place(visit: Visit, selector: str) -> list[int]:
    """In whole pixels: what sticks may be off by a part of one while the page scrolls."""
    box = await visit.page.locator(selector).bounding_box()
    assert box is not None
    return [round(each) for each in (box["x"], box["y"], box["width"], box["height"])]


_JUMPS = """() => new Promise(resolve => {
    let sum = 0;
    new PerformanceObserver(list => { for (const each of list.getEntries()) sum += each.value; })
        .observe({ type: "layout-shift", buffered: true });
    setTimeout(() => resolve(sum), 200);
})"""


async def _violations(visit: Visit) -> list[str]:
    found = await visit.page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found]


async def test_a_foreign_page_in_the_same_browser_can_do_nothing(bench: Bench, browser: Browser) -> None:
    """What another origin's script tries - to read, post, frame, or import - fails, and spends nothing."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    token = await token_of(proxy)
    async with _foreign(bench) as url, visiting(browser, url, DESKTOP) as visit:
        for body in ("null", json.dumps({"mode": "no-cors"}), json.dumps({"headers": {TOKEN: token}})):
            tried = f"""async () => {{
                try {{ return await (await fetch("{base(proxy)}/", {body} ?? undefined)).text(); }}
                catch (error) {{ return error.name; }}
            }}"""
            assert await visit.page.evaluate(tried) in ("TypeError", "")
        post = f"""async () => fetch("{base(proxy)}/page/jobs", {{ method: "POST", mode: "no-cors",
            body: JSON.stringify({{ model: "scripted", deposit: "1" }})
            }}).then(it => it.type, it => it.name)"""
        assert await visit.page.evaluate(post) in ("opaque", "TypeError")
        framed = f"""() => new Promise(resolve => {{
            const frame = document.createElement("iframe");
            frame.onload = () => resolve(frame.contentDocument?.body?.innerText ?? "closed");
            frame.src = "{base(proxy)}/"; document.body.append(frame);
        }})"""
        assert await visit.page.evaluate(framed) == "closed"
    assert proxy.spender.jobs == []


@asynccontextmanager
async def _foreign(bench: Bench) -> AsyncIterator[str]:
    """Somebody else's site."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>Elsewhere</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_a_name_that_was_rebound_is_given_no_page(bench: Bench, browser: Browser) -> None:
    """A name that leads to this machine shows the refusal, without the token, in a real browser."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    token = await token_of(proxy)
    rebound = base(proxy).replace("127.0.0.1", "rebound.localhost")
    async with visiting(browser, rebound, DESKTOP) as visit:
        content = await visit.page.content()
        assert "page_refused" in content
        assert token not in content
