"""What it means when an engine says no: whose mistake it is, and in which words."""

from __future__ import annotations

from typing import Any

import orjson

from tallystick.errors import EngineError, EngineFalseStart, EngineRefused, EngineUnavailable

_DETAIL = 500
_KEY_REFUSED = (401, 403)
# 4xx that the same request may get past later, or that no payer can mend.
_NOT_THE_PAYERS = (*_KEY_REFUSED, 404, 405, 408, 429)


class NoRoute(EngineUnavailable):
    """404: no such route, or no such model."""


# 503 and 429 are an engine that is loading or full: it has not begun.
_KINDS: dict[int, type[EngineError]] = {
    404: NoRoute,
    500: EngineFalseStart,
    502: EngineFalseStart,
    504: EngineFalseStart,
}


def turned_down(status: int, detail: str) -> EngineError:
    """What an engine's status other than 200 means to the request."""
    if 400 <= status < 500 and status not in _NOT_THE_PAYERS:
        return EngineRefused(detail)
    if status in _KEY_REFUSED:
        return EngineUnavailable(f"The engine refused the node's key (ENGINE_API_KEY): {detail}")
    return _KINDS.get(status, EngineUnavailable)(f"The engine answered {status}: {detail}")


def detail_of(error: Any) -> str:
    """The engine's own words in an error: the body of a response, or the `error` of a chunk."""
    if isinstance(error, bytes):
        try:
            error = orjson.loads(error)
        except orjson.JSONDecodeError:
            error = error.decode(errors="replace")
    while isinstance(error, dict):
        error = error.get("error") or error.get("message") or error.get("detail") or "no reason given"
    return str(error)[:_DETAIL]
