"""What the routes take and answer, as OpenAPI 3.1: `GET /openapi.json`.

Bodies are described by the forms that read them, refusals by their table, so neither can say another thing
than the code does. Tests hold the operations against the routes, and every route against its description.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from tallystick import __version__, asking, wire
from tallystick.errors import REFUSALS
from tallystick.proof import MAX_JOB_ID
from tallystick.tables import State

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_FORMS = {
    "ChatRequest": asking.Chat,
    "TextRequest": asking.Text,
    "Receipt": wire.ReceiptForm,
    "Opening": wire.OpeningForm,
    "TopUp": wire.TopUpForm,
}
_IN_PROMPT = ("ChatRequest", "TextRequest", "_Message", "_TextPart", "_RefusalPart")
_BODY = ("invalid_request", "too_large")
_ASKED = ("access_missing", "tls_required", "access_malformed", "access_expired", "host_not_set_up")
_CHAIN = ("chain_unavailable", "ledger_unavailable", "job_elsewhere", "node_failed")
_OWNED = ("job_unknown", "job_unconfirmed", "job_of_another_host", "access_forged", "job_mismatch")
_RECEIPT = ("receipt_out_of_order", "receipt_mismatch", "receipt_forged", "receipt_not_needed")
_RELAYED = (
    *("not_relayed", "relay_limit", "relay_budget_spent", "relay_no_gas", "deposit_too_low"),
    *("authorization_runs_out", "authorization_reverts", "host_not_set_up"),
)
_SERVED = (
    *("job_closed", "job_completing", "job_ended", "signer_reused"),
    *("asset_not_accepted", "model_unknown", "model_mismatch", "price_too_low", "interval_too_large"),
    *("interval_too_small", "claim_window_too_short", "expiry_too_near", "credit_used_up"),
    *("payer_exposed", "host_exposed", "context_exceeded", "deposit_exhausted", "prompt_receipt_due"),
    *("stream_required", "receipt_due", "request_used", "too_many_choices"),
    *("idempotency_mismatch", "reply_gone", "reply_cancelled", "node_stopping"),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route."""

    method: str
    path: str
    summary: str
    answer: Schema
    """The schema of what it answers, or with `content`, the media types."""
    status: int = 200
    refusals: tuple[str, ...] = ("node_failed",)
    body: Schema | None = None
    parameters: tuple[Schema, ...] = ()
    bearer: bool = False

    @property
    def openais(self) -> bool:
        """Refused in the form of OpenAI's errors."""
        return wire.is_openais(self.path)

    def out(self) -> Schema:
        """As it stands in the document."""
        out: Schema = {"summary": self.summary, "responses": self._responses()}
        if self.parameters:
            out["parameters"] = list(self.parameters)
        if self.body is not None:
            out["requestBody"] = {"required": True, "content": {"application/json": {"schema": self.body}}}
        if self.bearer:
            out["security"] = [{"bearer": []}]
        return out

    def _responses(self) -> Schema:
        content = self.answer.get("content") or {"application/json": {"schema": self.answer}}
        responses: Schema = {str(self.status): {"description": "Served.", "content": content}}
        by_status = defaultdict(list)
        for code in self.refusals:
            by_status[REFUSALS[code].status].append(code)
        for status, codes in sorted(by_status.items()):
            told = " ".join(f"`{code}`: {REFUSALS[code].meaning}" for code in codes)
            responses[str(status)] = {"description": told, "content": self._refused()}
        return responses

    def _refused(self) -> Schema:
        if self.openais:
            return {"application/json": {"schema": _ref("Error")}}
        return {"application/problem+json": {"schema": _ref("Problem")}}


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(name=name)}


def _object(required: str, /, **properties: Schema) -> Schema:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, pattern: str, meaning: str) -> Schema:
    return {
        "name": name,
        "in": "header",
        "description": meaning,
        "schema": {"type": "string", "pattern": pattern},
    }


_STRING: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MONEY: Schema = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,28})$"}
_ADDRESS: Schema = {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
_SIGNATURE: Schema = {"type": "string", "pattern": "^0x[0-9a-f]{130}$"}
_TOTALS = _object("prompt_tokens tokens", prompt_tokens=_COUNT, tokens=_COUNT)
_PRICES = _object("per_million prompt_per_million", per_million=_MONEY, prompt_per_million=_MONEY)
_PRICED = {"type": "object", "propertyNames": _ADDRESS, "additionalProperties": _PRICES}
_USAGE = _object(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
)
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter", "function_call", None]}
_MODEL_NAME = _in_path("model", {"type": "string", "pattern": "^[!-~]+$"})
_JOB = _in_path("job_id", {"type": "integer", "minimum": 1, "maximum": MAX_JOB_ID})
_AGAIN = (
    _header("Idempotency-Key", wire.KEY_PATTERN, "The same key is answered with the same answer, paid once."),
    _header("Last-Event-ID", wire.EVENT_PATTERN, "Resumes a stream past that event."),
)


def _answers() -> dict[str, Schema]:
    """Schemas of what is answered."""
    choice = {"index": _COUNT, "finish_reason": _FINISH, "logprobs": {"type": ["object", "null"]}}
    message = _object(
        "role content refusal",
        role={"const": "assistant"},
        content=_or_null(_STRING),
        refusal=_or_null(_STRING),
        tool_calls=_array({"type": "object"}),
    )
    return {
        "Error": _object("error", error=_problem("message param", message=_STRING, param=_or_null(_STRING))),
        "Problem": _problem(""),
        "Tally": _object(
            "request prompt_tokens tokens job left",
            request=_STRING,
            prompt_tokens=_COUNT,
            tokens=_COUNT,
            job=_TOTALS,
            left=_MONEY,
        ),
        "ChatAnswer": _reply("chat.completion", "message", message=message, **choice),
        "TextAnswer": _reply("text_completion", "text", text=_STRING, **choice),
        "Model": _object(
            "id object created owned_by name prices",
            id=_STRING,
            object={"const": "model"},
            created=_COUNT,
            owned_by=_STRING,
            name=_STRING,
            prices=_PRICED,
        ),
        "Models": _object("object data", object={"const": "list"}, data=_array(_ref("Model"))),
        "Quote": _quote(),
        "Ack": _object(
            "job_id prompt_tokens tokens transcript signature",
            job_id=_COUNT,
            prompt_tokens=_COUNT,
            tokens=_COUNT,
            transcript=_STRING,
            signature=_or_null(_SIGNATURE),
        ),
        "Acked": _object("ack", ack=_ref("Ack"), stored=_ref("Receipt")),
        "Job": _object(
            "job_id status ended deposit left counted acknowledged receipted settled receipt",
            job_id=_COUNT,
            status={"enum": ["open", "completing", "closed"]},
            ended={"type": "boolean"},
            deposit=_MONEY,
            left=_MONEY,
            counted=_TOTALS,
            acknowledged=_TOTALS,
            receipted=_TOTALS,
            settled=_TOTALS,
            receipt=_or_null(_ref("Receipt")),
        ),
        "Sent": _object(
            "tx state job_id",
            tx={"type": "string", "pattern": "^0x[0-9a-f]{64}$"},
            state={"enum": [*State]},
            job_id=_or_null(_COUNT),
        ),
        "Alive": _object("status", status={"const": "alive"}),
        "Ready": _object(
            "ready reasons engines",
            ready={"type": "boolean"},
            reasons=_array(_STRING),
            engines=_array({"type": "object"}),
        ),
    }


def _problem(more: str, **properties: Schema) -> Schema:
    return _object(
        f"type title status detail code move mend retry {more}",
        type=_STRING,
        title=_STRING,
        status={"type": "integer"},
        detail=_STRING,
        code={"enum": list(REFUSALS)},
        move={"enum": ["payer", "host", "nobody"]},
        mend=_STRING,
        retry={"type": "boolean"},
        retry_after=_COUNT,
        **properties,
    )


def _reply(kind: str, said: str, **choice: Schema) -> Schema:
    choices = _array(_object(f"index {said} logprobs finish_reason", **choice))
    return _object(
        "id object created model choices usage tally",
        id=_STRING,
        object={"const": kind},
        created=_COUNT,
        model=_STRING,
        choices=choices,
        usage=_USAGE,
        tally=_ref("Tally"),
    )


def _quote() -> Schema:
    asset = _object("address symbol decimals", address=_ADDRESS, symbol=_STRING, decimals=_COUNT)
    return _object(
        "host chain_id contract assets models interval claim_window_min expiry_margin endpoint confirmations "
        "receipt_timeout grace relay_fee valid_until paid ready version signature",
        host=_or_null(_ADDRESS),
        chain_id=_COUNT,
        contract=_ADDRESS,
        assets=_array(asset),
        models=_array(_object("name prices", name=_STRING, prices=_PRICED)),
        interval=_object("min max in_flight_percent", min=_COUNT, max=_COUNT, in_flight_percent=_COUNT),
        claim_window_min=_COUNT,
        expiry_margin=_COUNT,
        endpoint=_STRING,
        confirmations=_COUNT,
        receipt_timeout=_COUNT,
        grace=_COUNT,
        relay_fee=_MONEY,
        valid_until=_COUNT,
        paid={"type": "boolean"},
        ready={"type": "boolean"},
        version=_STRING,
        signature=_or_null(_SIGNATURE),
    )


def _streamed(answer: str) -> Schema:
    events = {"schema": _object("data", data=_STRING, id={"type": "string", "pattern": wire.EVENT_PATTERN})}
    return {"content": {"application/json": {"schema": _ref(answer)}, "text/event-stream": events}}


_TEXT: Schema = {"content": {"text/plain": {"schema": _STRING}}}
_REPLY = (*_BODY, *_ASKED, *_OWNED, *_SERVED, *_RECEIPT, *_CHAIN)
_ENGINE = tuple(code for code in REFUSALS if code.startswith("engine_"))
_COMPLETE: Schema = {
    "oneOf": [
        _object("receipt", receipt=_ref("Receipt"), end={"type": "null"}),
        _object("end", end={"type": "string", "pattern": wire.SIGNATURE}, receipt={"type": "null"}),
    ]
}

OPERATIONS = (
    Operation(
        *("post", "/v1/chat/completions", "A chat's reply, streamed or not.", _streamed("ChatAnswer")),
        refusals=(*_REPLY, *_ENGINE),
        body=_ref("ChatRequest"),
        parameters=_AGAIN,
        bearer=True,
    ),
    Operation(
        *("post", "/v1/completions", "A text completed, streamed or not.", _streamed("TextAnswer")),
        refusals=(*_REPLY, *_ENGINE),
        body=_ref("TextRequest"),
        parameters=_AGAIN,
        bearer=True,
    ),
    Operation("get", "/v1/models", "The models and their prices.", _ref("Models")),
    Operation(
        *("get", "/v1/models/{model}", "One model and its prices.", _ref("Model")),
        refusals=("model_unknown", "node_failed"),
        parameters=(_MODEL_NAME,),
    ),
    Operation(
        *("get", "/v1/host", "What a job has to look like, signed by the host.", _ref("Quote")),
        refusals=("ledger_unavailable", "node_failed"),
    ),
    Operation(
        *("get", "/v1/session", "A WebSocket: replies, receipts and the end of a session.", _TEXT, 101),
        refusals=("upgrade_required", *_ASKED, *_OWNED, *_CHAIN),
    ),
    Operation(
        *("get", "/v1/jobs/{job_id}", "The host's view of a job.", _ref("Job")),
        refusals=("not_found", *_ASKED, *_OWNED, *_CHAIN),
        parameters=(_JOB,),
        bearer=True,
    ),
    Operation(
        *("post", "/v1/jobs/{job_id}/receipts", "A receipt in, its acknowledgement out.", _ref("Acked")),
        refusals=("not_found", "job_closed", *_BODY, *_ASKED, *_OWNED, *_RECEIPT, *_CHAIN),
        body=_ref("Receipt"),
        parameters=(_JOB,),
        bearer=True,
    ),
    Operation(
        *(
            "post",
            "/v1/jobs/{job_id}/complete",
            "The session ends; the job is settled.",
            _ref("Job"),
            202,
        ),
        refusals=(
            *("not_found", "end_forged", "job_closed", "asset_not_accepted", "host_not_set_up"),
            *(*_BODY, *_OWNED, *_RECEIPT, *_CHAIN),
        ),
        body=_COMPLETE,
        parameters=(_JOB,),
    ),
    Operation(
        *("post", "/v1/jobs", "A job opened for a payer, who has authorized it.", _ref("Sent"), 202),
        refusals=(
            *("job_of_another_host", "signer_reused", "asset_not_accepted", "model_mismatch"),
            *("model_unknown", "price_too_low", "interval_too_large", "interval_too_small"),
            "claim_window_too_short",
            *("expiry_too_near", "relay_fee_too_low", *_RELAYED, *_BODY, *_CHAIN),
        ),
        body=_ref("Opening"),
    ),
    Operation(
        *(
            "post",
            "/v1/jobs/{job_id}/top-up",
            "A deposit added to for a payer, who has authorized it.",
            _ref("Sent"),
            202,
        ),
        refusals=(
            *("not_found", "job_unknown", "job_of_another_host", "job_closed", "job_completing"),
            *("top_up_not_earned", *_RELAYED, *_BODY, *_CHAIN),
        ),
        body=_ref("TopUp"),
        parameters=(_JOB,),
    ),
    Operation("get", "/healthz", "Alive.", _ref("Alive")),
    Operation("get", "/readyz", "Able to serve paid jobs; 503 with the reasons if not.", _ref("Ready")),
    Operation("get", "/metrics", "Counts and gauges, in Prometheus' text format.", _TEXT),
    Operation("get", "/openapi.json", "This document.", {"type": "object"}),
)


@cache
def document() -> bytes:
    """The whole document, as JSON."""
    paths: defaultdict[str, Schema] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method] = operation.out()
    # A node that cannot serve says why in the same form.
    ready = paths["/readyz"]["get"]["responses"]
    ready["503"] = {**ready["200"], "description": "Not able to."}
    bearer = {"type": "http", "scheme": "bearer", "description": "A job's: `tally job token JOB`."}
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Tallystick host", "version": __version__, "description": "docs/protocol.md"},
            "paths": paths,
            "components": {"schemas": _schemas(), "securitySchemes": {"bearer": bearer}},
        }
    ).encode()


def _schemas() -> dict[str, Schema]:
    _, components = msgspec.json.schema_components(_FORMS.values(), ref_template=_REF)
    names = {form.__name__: name for name, form in _FORMS.items()}
    # Python's end of a text is `\Z`, JSON Schema's is `$`.
    told = json.dumps(components).replace("\\\\Z", "$")
    for form, name in names.items():
        told = told.replace(f'"{form}"', f'"{name}"').replace(f'schemas/{form}"', f'schemas/{name}"')
    schemas: dict[str, Schema] = json.loads(told)
    for name in _IN_PROMPT:
        schemas[name]["additionalProperties"] = _ref("Json")
    schemas["TextRequest"]["properties"] |= {"prompt": _prompt(), "echo": {"enum": [False, None]}}
    return {**schemas, **_answers(), "Json": _json()}


def _prompt() -> Schema:
    """One text, the token ids of one, or a list of either."""
    ids = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": asking.MAX_ID},
        "minItems": 1,
        "maxItems": asking.MAX_IDS,
    }
    several = {**_array({"anyOf": [_STRING, ids]}), "minItems": 1, "maxItems": asking.MAX_CHOICES}
    return {"anyOf": [_STRING, ids, several]}


def _json() -> Schema:
    """What else a request may hold: any JSON that has a canonical form (RFC 8785)."""
    whole = {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}
    simple: Iterable[Schema] = ({"type": ["string", "boolean", "null"]}, whole)
    nested = [_array(_ref("Json")), {"type": "object", "additionalProperties": _ref("Json")}]
    return {"anyOf": [*simple, *nested]}
