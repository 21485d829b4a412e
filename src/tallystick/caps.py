"""What a payer is ready to spend: a highest price, so much in escrow for a job at a time, so much on a day.

Rules only: knows no chain, store or clock. Amounts are base units of one asset. The day's cap is on what can
be spent: what was spent on the day, and all that still could be of what is in escrow. No host can take more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tallystick.countersign import PROMPT_MARGIN
from tallystick.errors import Refusal
from tallystick.pricing import MILLION, from_units, value
from tallystick.types import Address, Prices, Totals


@dataclass(frozen=True, slots=True)
class Stake:
    """What a job may cost on one day, in base units, for a payer that keeps within so much a day."""

    signer: Address
    asset: Address
    day: str
    """Of the chain's clock: "2027-01-15"."""
    began: int
    """What the job had cost when the day began."""
    most: int
    """The most that it may come to: its deposit while it is open, what it cost in all once it is closed."""

    @property
    def at_most(self) -> int:
        """The most that the job costs on this day."""
        return self.most - self.began


def option(name: str) -> str:
    """How the command line calls a cap."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Words:
    """In which words people are told of caps: by default in base units, as the command line's options."""

    symbol: str = "base units"
    """Of the asset."""
    decimals: int = 0
    named: Callable[[str], str] = option
    """What a cap is called where it was set."""

    def money(self, units: int) -> str:
        """An amount for people."""
        return f"{from_units(units, self.decimals)} {self.symbol}"


@dataclass(frozen=True, slots=True)
class Caps:
    """Never exceeded, whatever hosts and clients do."""

    deposit: int
    """What a job has in escrow and has not spent: it is opened with so much, and topped up to it."""
    per_day: int
    """What may be spent on one day of the chain's clock, UTC, over all jobs."""
    price: int | None = None
    """The highest price per million tokens of either kind; None: whatever a host asks."""
    prices: Mapping[str, int] = field(default_factory=dict)
    """Those of single models."""
    words: Words = field(default=Words(), compare=False)

    def max_price(self, model: str) -> int | None:
        """The highest price for a model."""
        return self.prices.get(model, self.price)

    def allows(self, model: str, prices: Prices) -> bool:
        """True for prices that are within the cap, both of them."""
        most = self.max_price(model)
        return most is None or max(prices.per_million, prices.prompt_per_million) <= most

    def check_price(self, model: str, prices: Prices) -> None:
        """Refusal `price_above_cap`."""
        if not self.allows(model, prices):
            asked, most = max(prices.per_million, prices.prompt_per_million), self.max_price(model)
            told = f"The host asks {self.words.money(asked)} a million tokens of {model!r}"
            cap = f"{self.words.named('max_price')} is {self.words.money(most or 0)}"
            raise Refusal("price_above_cap", f"{told}, and {cap}.", asked=str(asked), cap=str(most))

    def room(self, stakes: Iterable[Stake], day: str) -> int:
        """What may still be staked on `day`; below 0 if caps were higher when the stakes were made.

        Stakes of a later day count too: another program's endpoint is ahead.
        """
        return self.per_day - sum(stake.at_most for stake in stakes if stake.day >= day)

    def addable(self, rest: int, room: int) -> int:
        """What a job may be given that has `rest` unspent; below 0 if caps were higher before."""
        return min(self.deposit - rest, room)

    def first_deposit(self, cost: int, room: int) -> int:
        """What a job is opened with that is to pay for `cost` at once. Refusal `cap_reached`."""
        deposit = self.addable(0, room)
        self._check(cost, deposit, room)
        return deposit

    def top_up(self, purse: Purse, cost: int, room: int) -> int:
        """What to add to a job so that it pays for `cost` beside what is under way; 0: it does as it is.

        Refusal `cap_reached`.
        """
        if purse.free >= cost:
            return 0
        more = max(0, self.addable(purse.rest, room))
        self._check(cost, purse.free + more, room)
        return more

    def check_top_up(self, purse: Purse, units: int, room: int) -> None:
        """Refusal `cap_reached` for more than a job may have unspent, or than the day leaves."""
        self._check(units, self.addable(purse.rest, room), room)

    def _check(self, cost: int, payable: int, room: int) -> None:
        if cost <= payable:
            return
        lacking = self.words.named("deposit" if payable < room or self.deposit < cost else "max_per_day")
        most, left = self.words.money(cost), self.words.money(max(0, payable))
        raise Refusal(
            "cap_reached",
            f"The request may cost {most}, and {lacking} leaves {left} for it.",
            cost=str(cost),
            payable=str(max(0, payable)),
        )


@dataclass(frozen=True, slots=True)
class Purse:
    """What is in a job: its deposit, what of it is owed, what requests under way may still cost."""

    deposit: int
    owed: int
    reserved: int

    @property
    def rest(self) -> int:
        """What was not spent."""
        return self.deposit - self.owed

    @property
    def free(self) -> int:
        """What nobody has a claim on yet."""
        return self.rest - self.reserved


def at_most(prompt_bytes: int, max_tokens: int, choices: int, prices: Prices) -> int:
    """The most that a request can cost: what its payer never signs beyond, in base units, rounded up.

    `prompt_bytes` of its canonical form; `max_tokens` of all `choices` together.
    """
    most = Totals(prompt_bytes + choices * PROMPT_MARGIN, max_tokens)
    return -(-value(most, prices) // MILLION)


def on_day(stake: Stake, day: str, owed: int) -> Stake:
    """A stake as of `day`: what was owed when the day began is not the day's."""
    return stake if stake.day >= day else replace(stake, day=day, began=owed)
