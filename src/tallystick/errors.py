"""Every exception of the package, and the one table of refusals.

    TallystickError
    ├── ConfigError              a setting is missing or makes no sense
    ├── Refusal                  a request that is turned down; carries its row of REFUSALS
    ├── ChainError               the chain could not be asked, or gave no usable answer
    │   ├── WrongChain           the endpoint is on another chain
    │   ├── RpcError             the endpoint answered with a JSON-RPC error
    │   └── ContractError        a contract reverted; one subclass for each of its errors
    ├── EngineError              the inference engine failed
    │   ├── EngineUnavailable    it cannot be reached, or takes nothing now
    │   │   ├── EngineFalseStart     it failed before its first token
    │   │   └── EngineEmpty          it ended its reply without a token
    │   ├── EngineTimeout        it made no token in time
    │   │   └── EngineStalled        it fell silent in the middle of a reply
    │   ├── EngineUncounted      nobody can tell how many tokens it makes
    │   └── EngineRefused        it does not take the request as it stands
    ├── LedgerError              the ledger could not be written or read
    │   ├── DatabaseFailed       its database failed, or its disk; the ledger itself logs that, once
    │   ├── Elsewhere            another process of the host owns the job
    │   └── Superseded           what was to be written belongs to an ownership that is over
    ├── ReceiptError             a receipt, signature or transcript that does not hold
    └── SessionError             the payer's side cannot go on
        ├── HostLate             the host has not begun its reply in time
        ├── PriceRose            the host asks more than when it was chosen
        └── HostRefused          the host turned down what the payer asked; carries the host's problem object

A row of the table is the whole story of a refusal: HTTP status, meaning, whose move it is, what mends it,
whether the same request can succeed later. `docs/errors.md` is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from tallystick.frames import Problem


class TallystickError(Exception):
    """Base of all errors of this package."""


class ConfigError(TallystickError):
    """A setting is missing or makes no sense."""


class ChainError(TallystickError):
    """The chain could not be asked, or gave no usable answer."""


class WrongChain(ChainError):
    """The endpoint is on another chain than the one expected."""


class RpcError(ChainError):
    """The node answered with an error: `code` and `message`, and `data` if some came along.

    What a gateway says in its place (no credit, too many calls) is a ChainError: the node did not answer.
    """

    def __init__(self, endpoint: str, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(f"{endpoint}: {message} ({code})")


class EngineError(TallystickError):
    """The inference engine failed; nothing more is known than that it was in the middle of a reply."""

    code: ClassVar = "engine_failed"
    """Of the row of REFUSALS that a client is shown."""


class EngineUnavailable(EngineError):
    """The engine cannot be reached, or takes no request now."""

    code = "engine_unavailable"


class EngineFalseStart(EngineUnavailable):
    """The engine failed before its first token."""

    code = "engine_false_start"


class EngineEmpty(EngineUnavailable):
    """The engine ended its reply without a token."""

    code = "engine_empty"


class EngineTimeout(EngineError):
    """The engine made no token in time."""

    code = "engine_timeout"


class EngineStalled(EngineTimeout):
    """The engine fell silent in the middle of a reply."""

    code = "engine_stalled"


class EngineUncounted(EngineError):
    """The engine says nothing of its counts, and there is no tokenizer to count in its place."""

    code = "engine_uncounted"


class EngineRefused(EngineError):
    """The engine does not take the request as it stands; `detail` says why, in the engine's words."""

    code = "engine_refused"

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class LedgerError(TallystickError):
    """The ledger could not be written or read."""


class DatabaseFailed(LedgerError):
    """The ledger's database failed, or its disk. The ledger logs when that begins and when it is over."""


class Elsewhere(LedgerError):
    """Another process of the host owns job `job_id` (None: sends its transactions), and is reached at
    `address`, for `seconds` or longer.
    """

    def __init__(self, job_id: int | None, address: str | None, seconds: float) -> None:
        self.job_id = job_id
        self.address = address
        self.seconds = seconds
        what = "the host's key" if job_id is None else f"job {job_id}"
        super().__init__(f"{what} is in the hands of the process at {address or 'an unknown address'}")


class Superseded(LedgerError):
    """What was to be written of a job or a key belongs to an ownership of it that is over."""


class ReceiptError(TallystickError):
    """A receipt, signature or transcript that does not hold."""


class SessionError(TallystickError):
    """The payer's side cannot go on."""


class HostLate(SessionError):
    """The host has not begun its reply in time."""


class PriceRose(SessionError):
    """The host asks more than when it was chosen: nothing was opened at the new price."""


class HostRefused(SessionError):
    """The host turned down what was asked of it: `problem` is its object (protocol §12)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of refusal. `move`: payer, host or nobody. `retry`: can the same request succeed later?
    `retry_after`: in how many seconds it may, where it is the same for all.
    """

    status: int
    meaning: str
    move: str
    mend: str
    retry: bool = False
    retry_after: int | None = None


REFUSALS: dict[str, Row] = {
    "invalid_request": Row(
        400, "The request is not well formed.", "payer", "Correct the member that the detail names."
    ),
    "access_missing": Row(
        401,
        "No bearer came with the request.",
        "payer",
        "Send `Authorization: Bearer tally-…`; `tally job token JOB` prints one.",
    ),
    "access_malformed": Row(
        401, "The bearer cannot be read.", "payer", "Make a new one with `tally job token JOB`."
    ),
    "access_forged": Row(
        401,
        "The bearer was not signed by the job's signer.",
        "payer",
        "Use the session key that the job was opened with: `tally job token JOB`.",
    ),
    "access_expired": Row(
        401, "The bearer has run out.", "payer", "Make a new one with `tally job token JOB`."
    ),
    "tls_required": Row(
        403,
        "A bearer came in the clear from another machine.",
        "payer",
        "Use https, or a tunnel to loopback.",
    ),
    "job_unknown": Row(
        404,
        "The job does not exist on this chain.",
        "payer",
        "Check the job id, chain and contract; open a job with `tally chat`.",
    ),
    "job_unconfirmed": Row(
        503,
        "The job was created too few blocks ago to be relied on.",
        "nobody",
        "Try again after the blocks that the detail names.",
        retry=True,
    ),
    "job_mismatch": Row(
        403,
        "`job_id` in the body is not the bearer's job.",
        "payer",
        "Send one or the other, or the same in both.",
    ),
    "job_of_another_host": Row(
        403, "The job names another host.", "payer", "Ask that host, or open a job with this one."
    ),
    "job_closed": Row(402, "The job is complete and its rest went back.", "payer", "Open a new job."),
    "job_completing": Row(
        402, "The job is completing.", "payer", "Open a new job; the rest of this one comes back."
    ),
    "job_ended": Row(402, "The session was ended here and is being settled.", "payer", "Open a new job."),
    "signer_reused": Row(
        403, "The signer already served another job here.", "payer", "Open a job with a new session key."
    ),
    "asset_not_accepted": Row(
        402, "The host does not take the job's asset.", "payer", "Open a job in an asset of the host's list."
    ),
    "model_unknown": Row(
        404, "The host does not serve this model.", "payer", "Choose one of `GET /v1/models`."
    ),
    "model_mismatch": Row(
        402, "The job is for another model.", "payer", "Open a job for this model, or for any."
    ),
    "price_too_low": Row(
        402, "The job pays less than the host asks.", "payer", "Open a job at the host's prices or above."
    ),
    "interval_too_large": Row(
        402,
        "The job's interval is larger than the host allows.",
        "payer",
        "Open a job with a smaller interval.",
    ),
    "interval_too_small": Row(
        402,
        "The job's interval is smaller than the host can serve.",
        "payer",
        "Open a job with a larger interval.",
    ),
    "claim_window_too_short": Row(
        402,
        "The job's claim window is shorter than the host allows.",
        "payer",
        "Open a job with a longer claim window.",
    ),
    "expiry_too_near": Row(
        402, "The job expires before a reply could be settled.", "payer", "Open a new job."
    ),
    "deposit_exhausted": Row(
        402,
        "The deposit does not pay for the prompt and one token more.",
        "payer",
        "Top the job up, or open a new one.",
    ),
    "prompt_receipt_due": Row(
        402,
        "The prompt costs more than the credit that is left.",
        "payer",
        "Sign for what you received and for the `prompt_tokens` in `terms`, then send the request again "
        "with the receipt in `tally`.",
    ),
    "stream_required": Row(
        402,
        "The whole answer might cost more than the credit, and nobody could sign on the way.",
        "payer",
        "Ask through `tally proxy`, which signs for any client; ask for less; or use a host-attested job.",
    ),
    "credit_used_up": Row(
        402,
        "Clients of this job left more unsigned than its one credit, so the host has ended it.",
        "payer",
        "Open a new job; what was signed is settled and the rest comes back.",
    ),
    "payer_exposed": Row(
        402,
        "The payer's jobs together owe as much unsigned as this host lends one payer.",
        "payer",
        "Sign for what your other jobs have open, or ask on one of them.",
    ),
    "host_exposed": Row(
        503,
        "All jobs together owe as much unsigned as this host lends.",
        "nobody",
        "Try again; what others sign makes room. The host's limit is HOST_EXPOSURE_MAX.",
        retry=True,
    ),
    "receipt_due": Row(
        402,
        "No receipt came in time, and the credit is used up.",
        "payer",
        "Sign in time, or ask through `tally proxy`, which signs for any client, or on a host-attested job.",
    ),
    "receipt_out_of_order": Row(
        422,
        "The receipt does not follow the stored one.",
        "payer",
        "Adopt the stored receipt that comes with this, and sign again.",
    ),
    "receipt_mismatch": Row(
        422,
        "The receipt does not say what was delivered.",
        "payer",
        "Sign the position that the host's last chunk gave.",
    ),
    "receipt_forged": Row(
        422,
        "The receipt was not signed by the job's signer.",
        "payer",
        "Sign with the session key of this job.",
    ),
    "receipt_not_needed": Row(
        422, "The job is host-attested: nobody signs receipts on it.", "payer", "Send none."
    ),
    "end_forged": Row(
        403,
        "The end was not signed by the job's signer.",
        "payer",
        "Sign `End(jobId)` with the session key of this job.",
    ),
    "request_used": Row(
        422,
        "The request id was used before.",
        "payer",
        "Send a new one, or `Last-Event-ID` to resume.",
    ),
    "too_many_choices": Row(
        422, "The request asks for more than 128 choices.", "payer", "Ask for fewer prompts, or a lower `n`."
    ),
    "too_many_replies": Row(
        429,
        "Too many replies are under way on one socket.",
        "payer",
        "Ask again when one of them has ended, or on another socket.",
        retry=True,
    ),
    "upgrade_required": Row(
        426, "The route is a WebSocket.", "payer", "Ask for an upgrade to `websocket`; see docs/protocol.md."
    ),
    "idempotency_mismatch": Row(
        422,
        "The `Idempotency-Key`, or the id of a resumed request, was used for another request.",
        "payer",
        "Send a new one with a new request.",
    ),
    "reply_gone": Row(
        410,
        "What was sent of the reply is not kept any more, or never was.",
        "payer",
        "Ask anew; what was delivered and never signed for is written off.",
    ),
    "reply_cancelled": Row(
        410,
        "The reply was cancelled by its payer before it was whole; nothing is charged.",
        "payer",
        "Ask anew.",
    ),
    "context_exceeded": Row(
        400,
        "Prompt and `max_tokens` do not fit the model's context.",
        "payer",
        "Shorten the prompt, or ask for fewer tokens.",
    ),
    "not_found": Row(404, "There is no such route.", "payer", "See the routes in docs/protocol.md."),
    "not_allowed": Row(
        405, "The route does not take this method.", "payer", "See the routes in docs/protocol.md."
    ),
    "too_large": Row(
        413, "The body is larger than 8 MB, or than 128 kB without a good bearer.", "payer", "Send less."
    ),
    "host_not_set_up": Row(
        403,
        "This node serves no host, so it takes no paid job.",
        "host",
        "Set HOST_PRIVATE_KEY (or HOST_ADDRESS) and restart.",
    ),
    "engine_unavailable": Row(
        503,
        "The engine cannot be reached, or takes no request now; nothing is charged.",
        "host",
        "Try again; `tally doctor` tells the host what is wrong.",
        retry=True,
    ),
    "engine_false_start": Row(
        502,
        "The engine failed before its first token; nothing is charged.",
        "host",
        "Try again; the host finds the engine's words in its log.",
        retry=True,
    ),
    "engine_empty": Row(
        502,
        "The engine ended its reply without a token; nothing is charged.",
        "host",
        "Try again; the host finds in its log which engine it was.",
        retry=True,
    ),
    "engine_timeout": Row(
        504,
        "The engine made no token in time; nothing is charged.",
        "host",
        "Try again; the host gives its engine more slots, or longer by ENGINE_FIRST_TOKEN.",
        retry=True,
    ),
    "engine_failed": Row(
        502,
        "The engine failed in the middle of the reply; only what was streamed of it counts.",
        "host",
        "Sign for what came, if any, and ask again; the host finds the engine's words in its log.",
        retry=True,
    ),
    "engine_stalled": Row(
        504,
        "The engine fell silent in the middle of the reply; only what was streamed of it counts.",
        "host",
        "Sign for what came, if any, and ask again; the host looks at its engine, or sets ENGINE_NEXT_TOKEN.",
        retry=True,
    ),
    "engine_refused": Row(
        400, "The engine refused the request; nothing is charged.", "payer", "Correct what the detail says."
    ),
    "engine_uncounted": Row(
        403,
        "The engine says nothing of its token counts, so this node takes no paid job.",
        "host",
        "Set ENGINE_TOKENIZER to a GGUF file with the model's vocabulary, and restart.",
    ),
    "proxy_stopping": Row(503, "The proxy is shutting down.", "payer", "Start it again.", retry=True),
    "node_stopping": Row(503, "The node is shutting down.", "host", "Try again in a minute.", retry=True),
    "node_failed": Row(
        500,
        "The node met a fault of its own.",
        "host",
        "Try again; the host finds the fault in its log.",
        retry=True,
    ),
    "job_elsewhere": Row(
        503,
        "Another process of the host serves the job, or sends its transactions, and does not answer.",
        "host",
        "Try again after the seconds that `Retry-After` names: another process takes over by then.",
        retry=True,
    ),
    "cap_reached": Row(
        402,
        "The request may cost more than the payer's caps leave; nothing was asked of a host.",
        "payer",
        "Ask for fewer tokens, or raise the cap that the detail names.",
    ),
    "price_above_cap": Row(
        402,
        "The host asks more for this model than the payer's highest price.",
        "payer",
        "Choose another model or another host, or raise --max-price.",
    ),
    "payment_failed": Row(
        402, "The deposit could not be paid in.", "payer", "Mend what the detail says, and ask again."
    ),
    "rpc_unavailable": Row(
        503,
        "The payer's side cannot read the chain, or has nothing sent to it.",
        "payer",
        "Check RPC_URL there with `tally doctor`, and try again.",
        retry=True,
    ),
    "store_unavailable": Row(
        503,
        "The payer's side cannot write its keys and receipts, and signs nothing.",
        "payer",
        "Free disk space, check PAYER_DATA_DIR, and try again.",
        retry=True,
    ),
    "host_unreachable": Row(
        503,
        "The payer's side cannot go on with its host.",
        "host",
        "Try again; if it stays so, choose another host with --host.",
        retry=True,
    ),
    "hosts_failed": Row(
        503,
        "No host that may be asked has served the request.",
        "host",
        "Try again; the detail has what each one did. `tally hosts` lists others, and --host names one.",
        retry=True,
    ),
    "host_disputed": Row(
        422,
        "What the host counts or holds cannot be signed for.",
        "host",
        "Go no further with this host; no more is paid than what was signed.",
    ),
    "not_relayed": Row(
        403,
        "This host does not send what a payer has authorized, or not in this asset.",
        "payer",
        "Open the job with ETH for gas, or with a host whose quote has a `relay_fee`, in the dollar.",
    ),
    "relay_fee_too_low": Row(
        402,
        "The authorization leaves the host less than the `relay_fee` of its quote.",
        "payer",
        "Sign the `relay_fee` of the host's present quote.",
    ),
    "relay_limit": Row(
        429,
        "The host has sent as much for this payer on this day as it does.",
        "payer",
        "Send it yourself with ETH for gas, or ask again on the next day (UTC).",
        retry=True,
    ),
    "relay_budget_spent": Row(
        503,
        "What the host spends on payers' gas on a day is spent.",
        "host",
        "Send it yourself with ETH for gas, or ask again on the next day; the host's limit is "
        "HOST_RELAY_BUDGET.",
        retry=True,
    ),
    "relay_no_gas": Row(
        503,
        "The host has no ETH to send transactions with.",
        "host",
        "Try again later; the host sends ETH to the address of its key.",
        retry=True,
    ),
    "deposit_too_low": Row(
        402,
        "What would be in escrow does not pay for one interval.",
        "payer",
        "Deposit more, or name a smaller interval.",
    ),
    "authorization_runs_out": Row(
        402,
        "The authorization may have run out before it is on the chain.",
        "payer",
        "Sign one that is good for some minutes more.",
    ),
    "authorization_reverts": Row(
        422,
        "The chain does not take what was authorized; nothing was sent.",
        "payer",
        "Mend what the detail names (signature, balance, time, terms), and sign with another salt.",
    ),
    "top_up_not_earned": Row(
        402,
        "The job has not earned its host yet what sending a top-up costs.",
        "payer",
        "Use what is in the job first, or top it up with ETH for gas.",
    ),
    "job_in_use": Row(
        400,
        "A job of the payer's pays for this model already.",
        "payer",
        "Add to that job's deposit, or complete it first.",
    ),
    "page_refused": Row(
        403,
        "The request came from a web page, or under a name that is not the proxy's.",
        "payer",
        "Ask from a program, under the address that the proxy printed.",
    ),
    "key_refused": Row(
        401,
        "The API key is not the proxy's.",
        "payer",
        "Send `Authorization: Bearer KEY`, with the PROXY_API_KEY that the proxy has.",
    ),
    "json_required": Row(
        415, "The body does not come as JSON.", "payer", "Send it with `Content-Type: application/json`."
    ),
    "chain_unavailable": Row(
        503,
        "The node cannot read the chain.",
        "host",
        "Try again; the host checks RPC_URL with `tally doctor`.",
        retry=True,
    ),
    "ledger_unavailable": Row(
        503,
        "The node cannot write its ledger and takes no new work.",
        "host",
        "Try again; the host frees disk space and checks `tally doctor`.",
        retry=True,
        retry_after=2,
    ),
}


class Refusal(TallystickError):
    """A request that is turned down. `code` is a key of REFUSALS; `extra` goes beside it on the wire."""

    def __init__(self, code: str, detail: str = "", **extra: Any) -> None:
        self.code = code
        self.row = REFUSALS[code]
        self.detail = detail or self.row.meaning
        after = self.row.retry_after
        self.extra = extra if after is None else {"retry_after": after, **extra}
        super().__init__(f"{code}: {self.detail}")

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 object (protocol §12)."""
        return {
            "type": f"urn:tallystick:error:{self.code}",
            "title": self.row.meaning,
            "status": self.row.status,
            "detail": self.detail,
            "code": self.code,
            "move": self.row.move,
            "mend": self.row.mend,
            "retry": self.row.retry,
            **self.extra,
        }


class ContractError(ChainError):
    """A contract reverted. `name` is its error, `args` its values by name, in the contract's units."""

    def __init__(self, name: str, values: dict[str, Any] | None = None) -> None:
        self.name = name
        self.values = values or {}
        told = ", ".join(f"{k}={v}" for k, v in self.values.items())
        super().__init__(f"{name}({told})")


class Reverted(ContractError):
    """A `require` with a plain string: `reason`. Of our contracts, "Only host can submit checkpoints"."""


class Panicked(ContractError):
    """Solidity's own `Panic`: `code` is 0x11 for an overflow, 0x32 for an index out of bounds, and so on."""


class UnknownRevert(ContractError):
    """A revert that none of the contracts' errors explains: `data`, as hexadecimal digits."""


# The errors of JobMarketplace


class ZeroAddress(ContractError):
    """The constructor was given a zero address."""


class HostNotRegistered(ContractError):
    """`host` is not registered, so it takes no new jobs."""


class InvalidSigner(ContractError):
    """`signer` is zero or the host."""


class ZeroAmount(ContractError):
    """A deposit or top-up of nothing."""


class ZeroCheckpointInterval(ContractError):
    """A checkpoint interval of no tokens."""


class ClaimWindowOutOfRange(ContractError):
    """`claimWindow` is not within `least` to `most` seconds."""


class ExpiryOutOfRange(ContractError):
    """`expiresAt` is not after `present`, or is after `latest`; seconds since 1970."""


class WrongValue(ContractError):
    """The ETH `sent` along is not the `expected` wei."""


class WrongAmountReceived(ContractError):
    """The token moved `received` base units where `expected` were asked for."""


class AuthorizationInETH(ContractError):
    """ETH cannot be paid in by authorization."""


class RelayFeeTakesAll(ContractError):
    """The `relayFee` leaves nothing of the `deposit`; both in base units."""


class NotThePayer(ContractError):
    """`caller` is not the job's `payer`."""


class NotAParty(ContractError):
    """`caller` is neither host, payer nor signer of job `jobId`."""


class AlreadyCompleting(ContractError):
    """Job `jobId` is completing; its rest can be reclaimed from `closesAt` on."""


class JobExpired(ContractError):
    """Job `jobId` ended by itself at `expiresAt`."""


class NotYetReclaimable(ContractError):
    """The host of job `jobId` may still claim; the rest can be reclaimed from `closesAt` on."""


class NothingToWithdraw(ContractError):
    """`owner` has nothing in `asset` that this call could pay out."""


class PayoutElsewhere(ContractError):
    """The sender's earnings belong to `payout`; `withdrawFor` sends them there."""


class InvalidReceiver(ContractError):
    """`to` is the zero address or the marketplace, which cannot receive."""


class NotTheTreasury(ContractError):
    """`caller` is not the `treasury`."""


class NoSuchJob(ContractError):
    """There is no job `jobId`."""


class JobClosed(ContractError):
    """Job `jobId` is closed: its rest has gone back to the payer."""


class StaleCheckpoint(ContractError):
    """The claimed totals are below the settled ones in at least one of the two."""


class ProofLength(ContractError):
    """`length` bytes are not a length that the job's kind of proof can have."""


class AboveReceipt(ContractError):
    """The claimed totals are above the signed ones in at least one of the two."""


class WrongSigner(ContractError):
    """The receipt was signed by `recovered` (zero: no valid signature), not by the job's `signer`."""


class AboveRate(ContractError):
    """The `total` of a host-attested job is above the `most` that its rate allows by now."""


class AboveDeposit(ContractError):
    """The claimed totals are worth `owed`, more than the `deposit`; base units."""


class DoesNotFit(ContractError):
    """`value` needs more than `bits` bits."""


class RefundNeedsGas(ContractError):
    """Too little gas is `left` to send the refund and finish, which takes `needed`."""


# The errors of NodeRegistry


class NotTheHost(ContractError):
    """`caller` tried to register `host`; a host is registered by itself only."""


class AlreadyRegistered(ContractError):
    """`host` is registered already; `updateNode` changes its metadata."""


class NotRegistered(ContractError):
    """`host` is not registered."""


class MetadataLength(ContractError):
    """Metadata of `length` bytes; it is 1 to `most` bytes long."""


class NotThePayout(ContractError):
    """`caller` is not `payout`, which is the present payout address of the host."""


class ZeroPayout(ContractError):
    """The zero address cannot be paid."""


# The errors that our contracts take over from OpenZeppelin, and those of its ERC-20


class ReentrancyGuardReentrantCall(ContractError):
    """A call came back into the marketplace before it was done."""


class SafeERC20FailedOperation(ContractError):
    """`token` refused a transfer."""


class FailedCall(ContractError):
    """A receiver refused ETH."""


class InsufficientBalance(ContractError):
    """The contract holds `balance` wei and needs `needed`."""


class InvalidShortString(ContractError):
    """A string constant of the contract cannot be read."""


class StringTooLong(ContractError):
    """A string constant, `str`, does not fit one word."""


class ERC20InsufficientAllowance(ContractError):
    """`spender` may take `allowance` base units and needs `needed`."""


class ERC20InsufficientBalance(ContractError):
    """`sender` has `balance` base units and needs `needed`."""


class ERC20InvalidApprover(ContractError):
    """`approver` cannot approve anybody."""


class ERC20InvalidReceiver(ContractError):
    """`receiver` cannot receive tokens."""


class ERC20InvalidSender(ContractError):
    """`sender` cannot send tokens."""


class ERC20InvalidSpender(ContractError):
    """`spender` cannot be approved."""


class ERC3009InvalidSignature(ContractError):
    """The authorization is not signed by its payer, or not over these very values."""


class ERC3009InvalidAuthorizationTime(ContractError):
    """The authorization is good after `validAfter` and before `validBefore` only; seconds since 1970."""


class ERC3009UsedAuthorization(ContractError):
    """The authorization of `authorizer` with this `nonce` was used, or cancelled."""


class ECDSAInvalidSignature(ContractError):
    """It is no signature of anybody."""


class ECDSAInvalidSignatureLength(ContractError):
    """The signature is `length` bytes long."""


class ECDSAInvalidSignatureS(ContractError):
    """The signature's `s` is in its upper half."""


class SafeCastOverflowedUintDowncast(ContractError):
    """`value` needs more than `bits` bits."""
