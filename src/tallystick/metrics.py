"""What a node tells Prometheus (docs/metrics.md): looked up when it is asked for, not as it happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tallystick.node import Node
from tallystick.types import Address

CONTENT_TYPE = CONTENT_TYPE_LATEST
FRESH = 10.0
"""Seconds for which a look into the ledger is good: of very many jobs it takes a while."""


class Metrics:
    """The page of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._unsettled: Counter[Address] = Counter()
        self._in_flight = 0
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def page(self) -> bytes:
        """In Prometheus's text format. Raises LedgerError."""
        async with self._looking:
            await self._look()
        return generate_latest(_Found([*self._served(), *self._engines(), *self._money(), *self._sender()]))

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < FRESH:
            return
        node = self._node
        unsettled: Counter[Address] = Counter(dict.fromkeys(node.offer.assets, 0))
        for job in await node.ledger.outstanding(int(node.lookout.clock()), whole=True):
            if job.host == node.offer.host:
                unsettled[job.asset] += job.amount
        if node.sender is not None:
            self._in_flight = (await node.ledger.under_way(node.sender.address)).transactions
        self._unsettled, self._looked_at = unsettled, now

    def _served(self) -> Iterator[Metric]:
        accounts = self._node.desk.accounts
        tokens = CounterMetricFamily("tally_tokens", "Tokens counted.", labels=["kind"])
        tokens.add_metric(["prompt"], accounts.tokens.prompt_tokens)
        tokens.add_metric(["generated"], accounts.tokens.tokens)
        yield tokens
        work = accounts.work
        yield _counts("tally_replies", "Replies that are over, by the reason why.", "reason", work.replies)
        yield _counts("tally_refused", "Requests turned down, by code.", "code", work.refused)
        yield CounterMetricFamily("tally_receipts", "Receipts stored.", work.receipts)
        yield GaugeMetricFamily("tally_replies_under_way", "Replies under way.", accounts.streams)
        yield GaugeMetricFamily("tally_jobs", "Jobs that this process serves.", accounts.jobs)

    def _engines(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tally_engine_up", "1: the engine is asked.", labels=["engine"])
        busy = GaugeMetricFamily("tally_engine_replies", "Replies under way.", labels=["engine"])
        for number, engine in enumerate(self._node.engine.health(), 1):
            up.add_metric([str(number)], engine.why is None)
            busy.add_metric([str(number)], engine.streams)
        yield from (up, busy)

    def _money(self) -> Iterator[Metric]:
        text = "The host's part of what is not settled, in base units of the asset."
        unsettled = GaugeMetricFamily("tally_unsettled", text, labels=["asset"])
        for asset, amount in sorted(self._unsettled.items()):
            unsettled.add_metric([asset], amount)
        yield unsettled

    def _sender(self) -> Iterator[Metric]:
        sender = self._node.sender
        if sender is None:
            return
        yield GaugeMetricFamily("tally_sender_leading", "1: this process sends for the key.", sender.leading)
        yield GaugeMetricFamily("tally_sender_starving", "1: the key cannot pay for gas.", sender.starving)
        yield GaugeMetricFamily("tally_sender_in_flight", "Transactions in flight.", self._in_flight)


class _Found:
    """What `generate_latest` takes for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """What was found."""
        return self._metrics


def _counts(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, count in sorted(counts.items()):
        family.add_metric([key], count)
    return family
