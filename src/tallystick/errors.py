"""Every exception of the package, and the one table of refusals.

    TallystickError
    ├── ConfigError              a setting is missing or makes no sense
    ├── Refusal                  a request that is turned down; carries its row of REFUSALS
    ├── ChainError               the chain could not be asked, or gave no usable answer
    │   ├── WrongChain           the endpoint is on another chain
    │   └── ContractError        a contract reverted; one subclass for each of its errors
    ├── EngineError              the inference engine failed
    │   ├── EngineUnavailable    it could not be reached, or refused before its first token
    │   └── EngineTimeout        it was silent for too long
    ├── LedgerError              the ledger could not be written or read
    ├── ReceiptError             a receipt, signature or transcript that does not hold
    └── SessionError             the payer's side cannot go on

A row of the table is the whole story of a refusal: HTTP status, meaning, whose move it is, what mends it, whether the
same request can succeed later. `docs/errors.md` is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class TallystickError(Exception):
    """Base of all errors of this package."""


class ConfigError(TallystickError):
    """A setting is missing or makes no sense."""


class ChainError(TallystickError):
    """The chain could not be asked, or gave no usable answer."""


class WrongChain(ChainError):
    """The endpoint is on another chain than the one expected."""


class EngineError(TallystickError):
    """The inference engine failed."""


class EngineUnavailable(EngineError):
    """The engine could not be reached, or refused before its first token."""


class EngineTimeout(EngineError):
    """The engine was silent for too long."""


class LedgerError(TallystickError):
    """The ledger could not be written or read."""


class ReceiptError(TallystickError):
    """A receipt, signature or transcript that does not hold."""


class SessionError(TallystickError):
    """The payer's side cannot go on."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of refusal. `move`: payer, host or nobody. `retry`: can the same request succeed later?"""

    status: int
    meaning: str
    move: str
    mend: str
    retry: bool = False


REFUSALS: dict[str, Row] = {
    "invalid_request": Row(400, "The request is not well formed.", "payer", "Correct the member that the detail names."),
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
        403, "A bearer came in the clear from another machine.", "payer", "Use https, or a tunnel to loopback."
    ),
    "job_unknown": Row(
        404, "The job does not exist on this chain.", "payer", "Check the job id, chain and contract; open a job with `tally chat`."
    ),
    "job_unconfirmed": Row(
        503,
        "The job was created too few blocks ago to be relied on.",
        "nobody",
        "Try again after the blocks that the detail names.",
        retry=True,
    ),
    "job_mismatch": Row(403, "`job_id` in the body is not the bearer's job.", "payer", "Send one or the other, or the same in both."),
    "job_of_another_host": Row(403, "The job names another host.", "payer", "Ask that host, or open a job with this one."),
    "job_closed": Row(402, "The job is complete and its rest went back.", "payer", "Open a new job."),
    "job_completing": Row(402, "The job is completing.", "payer", "Open a new job; the rest of this one comes back."),
    "job_ended": Row(402, "The session was ended here and is being settled.", "payer", "Open a new job."),
    "signer_reused": Row(403, "The signer already served another job here.", "payer", "Open a job with a new session key."),
    "asset_not_accepted": Row(402, "The host does not take the job's asset.", "payer", "Open a job in an asset of the host's list."),
    "model_unknown": Row(404, "The host does not serve this model.", "payer", "Choose one of `GET /v1/models`."),
    "model_mismatch": Row(402, "The job is for another model.", "payer", "Open a job for this model, or for any."),
    "price_too_low": Row(402, "The job pays less than the host asks.", "payer", "Open a job at the host's prices or above."),
    "interval_too_large": Row(402, "The job's interval is larger than the host allows.", "payer", "Open a job with a smaller interval."),
    "interval_too_small": Row(402, "The job's interval is smaller than the host can serve.", "payer", "Open a job with a larger interval."),
    "claim_window_too_short": Row(402, "The job's claim window is shorter than the host allows.", "payer", "Open a job with a longer claim window."),
    "expiry_too_near": Row(402, "The job expires before a reply could be settled.", "payer", "Open a new job."),
    "deposit_exhausted": Row(402, "The deposit does not pay for the prompt and one token more.", "payer", "Top the job up, or open a new one."),
    "prompt_receipt_due": Row(
        402,
        "The prompt costs more than the credit that is left.",
        "payer",
        "Sign the totals in `terms` and send the request again with the receipt in `tally`.",
    ),
    "stream_required": Row(
        402,
        "The whole answer might cost more than the credit, and nobody could sign on the way.",
        "payer",
        "Ask with `stream: true` from a client that signs, through `tally proxy`, or for fewer tokens.",
    ),
    "receipt_due": Row(402, "No receipt came in time, and the credit is used up.", "payer", "Send the receipt that is due; use `tally proxy` with a client that cannot."),
    "receipt_out_of_order": Row(422, "The receipt does not follow the stored one.", "payer", "Adopt the stored receipt that comes with this, and sign again."),
    "receipt_mismatch": Row(422, "The receipt does not say what was delivered.", "payer", "Sign the position that the host's last chunk gave."),
    "receipt_forged": Row(422, "The receipt was not signed by the job's signer.", "payer", "Sign with the session key of this job."),
    "receipt_not_needed": Row(422, "The job is host-attested: nobody signs receipts on it.", "payer", "Send none."),
    "end_forged": Row(403, "The end was not signed by the job's signer.", "payer", "Sign `End(jobId)` with the session key of this job."),
    "context_exceeded": Row(400, "Prompt and `max_tokens` do not fit the model's context.", "payer", "Shorten the prompt, or ask for fewer tokens."),
    "not_found": Row(404, "There is no such route.", "payer", "See the routes in docs/protocol.md."),
    "not_allowed": Row(405, "The route does not take this method.", "payer", "See the routes in docs/protocol.md."),
    "too_large": Row(413, "The body is larger than 8 MB.", "payer", "Send less."),
    "host_not_set_up": Row(
        403,
        "This node serves no host, so it takes no paid job.",
        "host",
        "Set HOST_PRIVATE_KEY (or HOST_ADDRESS) and restart.",
    ),
    "engine_unavailable": Row(503, "The engine failed before its first token; nothing is charged.", "host", "Try again; `tally doctor` tells the host what is wrong.", retry=True),
    "engine_refused": Row(400, "The engine refused the request; nothing is charged.", "payer", "Correct what the detail says."),
    "engine_timeout": Row(504, "The engine was silent for too long; nothing is charged.", "host", "Try again; `tally doctor` tells the host what is wrong.", retry=True),
    "chain_unavailable": Row(503, "The node cannot read the chain.", "host", "Try again; the host checks RPC_URL with `tally doctor`.", retry=True),
    "ledger_unavailable": Row(503, "The node cannot write its ledger and takes no new work.", "host", "Try again; the host frees disk space and checks `tally doctor`.", retry=True),
}


class Refusal(TallystickError):
    """A request that is turned down. `code` is a key of REFUSALS; `extra` goes beside it on the wire."""

    def __init__(self, code: str, detail: str = "", **extra: Any) -> None:
        self.code = code
        self.row = REFUSALS[code]
        self.detail = detail or self.row.meaning
        self.extra = extra
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
