"""The hosts that a payer may ask: those that it names, or all that are registered.

    hosts = Hosts(wallet, ["https://host.example"])     # none named: the registry's
    listings = await hosts.listings()
    await hosts.note(listings[0].host, Came(tokens=120, first_token=0.2))

What is known is asked for again when it is old. Who is asked of them is for `ranking.py` to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import structlog

from tallystick import discovery, opening, ranking
from tallystick.caps import Caps
from tallystick.discovery import Listing
from tallystick.errors import SessionError
from tallystick.opening import Quote
from tallystick.ranking import Candidate, Chosen
from tallystick.record import Came, Record
from tallystick.types import Address
from tallystick.wallet import Wallet

QUOTE_AGE = 60.0
"""Seconds for which quotes are relied on; what a job costs is in its own terms."""
REGISTRY_AGE = 600.0
"""Seconds for which the registry's hosts are relied on."""
UNKNOWN = Address("")
"""The address of a named host that has not said it."""

log = structlog.get_logger(__name__)


class Hosts:
    """What one payer knows of hosts. Its record of them is in its store, and counts in all its programs."""

    def __init__(self, wallet: Wallet, urls: Sequence[str] = ()) -> None:
        """`urls`: of the hosts to choose among; none: the registered ones. LedgerError."""
        self.urls = tuple(dict.fromkeys(urls))
        self._wallet = wallet
        self._place = wallet.deployment.chain_id
        self._asking = asyncio.Lock()
        self._registered: Mapping[Address, str] = {}
        self._registered_at = float("-inf")
        self._listed: list[Listing] = []
        self._listed_at = float("-inf")
        self._paid: dict[str, bool] = {}
        self._records = wallet.store.records(self._place)

    async def listings(self) -> list[Listing]:
        """The hosts with what they said a minute ago at the most; if no quote holds, they are asked anew.

        ChainError if the chain cannot be asked.
        """
        async with self._asking:
            usable = any(listing.quote is not None for listing in self._listed)
            if not usable or _now() - self._listed_at > QUOTE_AGE:
                self._records = await asyncio.to_thread(self._wallet.store.records, self._place)
                self._listed = await self._ask()
                self._listed_at = _now()
            return self._listed

    async def renew(self, url: str) -> Quote:
        """What a host takes as of now. SessionError if it does not say so, or what it says does not hold."""
        async with self._asking:
            found = (await self._ask(url) or [Listing(UNKNOWN, url, trouble="it has left the registry")])[0]
            self._listed = [found if each.endpoint == url else each for each in self._listed]
        if found.quote is None:
            raise SessionError(found.trouble)
        return found.quote

    async def choose(
        self,
        model: str | None,
        asset: Address,
        caps: Caps,
        engaged: Sequence[Candidate] = (),
        passed: Collection[str] = (),
    ) -> Chosen | None:
        """Who is asked for a model (None: the first that a host names); None: nobody is left.

        `engaged`: who has an open job for it, and is asked first; `passed`: URLs that are not asked again.
        Raises what `ranking.check_sold` raises, and ChainError if the chain cannot be asked.
        """
        now = time.time()
        left = [each for each in engaged if each.url not in passed]
        if free := [each for each in left if not each.record.is_aside(now)]:
            return ranking.choose(free, now)
        listings, with_jobs = await self.listings(), {each.url for each in engaged}
        sold = [
            offer
            for listing in listings
            for offer in self._offers(listing, model, asset, caps)
            if offer.url not in with_jobs
        ]
        if not (sold or engaged or passed):
            ranking.check_sold(listings, asset, caps, model)
        return ranking.choose([*left, *(each for each in sold if each.url not in passed)], now)

    def _offers(self, listing: Listing, model: str | None, asset: Address, caps: Caps) -> list[Candidate]:
        """What a host sells of a model, if it does; or the first of what it sells."""
        offers = ranking.offers(listing, self.record(listing.host), asset, caps)
        return offers[:1] if model is None else [each for each in offers if each.model == model]

    async def sold(self, asset: Address, caps: Caps) -> list[Candidate]:
        """All models that can be asked for, each with who would be asked first.

        SessionError if no host can be asked; raises what `listings` raises.
        """
        listings = await self.listings()
        if not any(listing.quote for listing in listings):
            raise SessionError(ranking.without_quotes(listings))
        found = [
            offer
            for listing in listings
            for offer in ranking.offers(listing, self.record(listing.host), asset, caps)
        ]
        first = {each.model: each for each in reversed(ranking.ranked(found, time.time()))}
        return [first[model] for model in dict.fromkeys(each.model for each in found)]

    async def is_paid(self, url: str) -> bool:
        """False for a host that says that it has no key, and so can complete nothing."""
        if url not in self._paid:
            known = next((each for each in self._listed if each.endpoint == url), None)
            quote = (known or (await self._named([url]))[0]).quote
            if quote is None:
                return True
            self._paid[url] = quote.paid
        return self._paid[url]

    def record(self, host: Address) -> Record:
        """What came of what was asked of a host."""
        return self._records.get(host, Record(host))

    def is_aside(self, host: Address) -> bool:
        """Others are asked before it."""
        return self.record(host).is_aside(time.time())

    async def note(self, host: Address, came: Came) -> float | None:
        """Adds to the record of a host what came of one request.

        For how many seconds others are asked before it because of that; None: it was no trouble, or one that
        is known already.
        """
        aside, now = float(self._wallet.config.set_aside), time.time()
        noted = self._wallet.store.note
        record = await asyncio.to_thread(noted, self._place, host, came, now, aside)
        self._records[host] = record
        return record.aside_until - now if record.troubled_at == now else None

    async def _ask(self, url: str | None = None) -> list[Listing]:
        """All hosts, or the one at that URL, as they answer now."""
        if self.urls:
            found = await self._named(self.urls if url is None else [url])
        else:
            registered = await self._known() if url is None else self._described(url)
            found = await discovery.asked(self._wallet.chain, registered)
        return [self._usable(listing) for listing in found]

    async def _known(self) -> Mapping[Address, str]:
        """The registry's hosts, each with how it describes itself."""
        if not self._registered or _now() - self._registered_at > REGISTRY_AGE:
            self._registered = await self._wallet.chain.hosts()
            self._registered_at = _now()
        return self._registered

    def _described(self, url: str) -> Mapping[Address, str]:
        """The registered host at that URL, with how it describes itself."""
        hosts = [each.host for each in self._listed if each.endpoint == url and each.host in self._registered]
        return {host: self._registered[host] for host in hosts[:1]}

    async def _named(self, urls: Sequence[str]) -> list[Listing]:
        now = (await self._wallet.chain.block()).timestamp
        return list(await asyncio.gather(*(self._listing(url, now) for url in urls)))

    async def _listing(self, url: str, now: int) -> Listing:
        try:
            quote = await opening.fetch_quote(url)
            opening.check_holds(quote, self._wallet.deployment, now)
        except SessionError as error:
            log.warning("host.unusable", url=url, cause=str(error))
            return Listing(UNKNOWN, url, trouble=str(error))
        return Listing(quote.host, url, quote)

    def _usable(self, listing: Listing) -> Listing:
        """Without its quote, where this payer's interval is not within what the host takes."""
        quote, interval = listing.quote, self._wallet.config.interval
        if quote is None or quote.interval_min <= interval <= quote.interval_max:
            return listing
        taken = f"{quote.interval_min} to {quote.interval_max} tokens"
        return replace(listing, quote=None, trouble=f"it takes intervals of {taken}, not {interval}")


def _now() -> float:
    return time.monotonic()
