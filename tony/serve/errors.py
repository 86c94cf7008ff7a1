"""Errors in the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}
BRANCH = re.compile(r"(str|int|float|bool|list|dict)(\[.*\])?")  # a type of several that a field may have


class ApiError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The error as an HTTP response."""
    kind = TYPES.get(status, "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


async def handle_api_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of ApiError."""
    assert isinstance(error, ApiError)
    return error_response(error.status, error.message, error.param, error.code)


async def handle_user_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of TonyError: what was sent can't be worked with."""
    return error_response(400, str(error))


async def handle_invalid(request: Request, error) -> JSONResponse:
    """Exception handler of FastAPI's validation: the first thing that is wrong, in a sentence."""
    first = _first(error.errors())
    if first["type"] == "json_invalid":
        found = f"{first['ctx']['error'].lower()} at character {first['loc'][1] + 1}"
        return error_response(400, f"the body is not JSON: {found}")
    where = ".".join(str(part) for part in first["loc"][1:] if not BRANCH.fullmatch(str(part)))
    return error_response(400, _wrong(where, first), where or None)


def _first(errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first error; in a field that may have several types, of the type that comes closest."""
    place = errors[0]["loc"]
    at = next((at for at, part in enumerate(place) if BRANCH.fullmatch(str(part))), len(place))
    return max((error for error in errors if error["loc"][:at] == place[:at]), key=lambda error: len(error["loc"]))


def _wrong(where: str, first: Mapping[str, Any]) -> str:
    """What is wrong with the field `where`, or with the body if it is ""; `first` is what Pydantic says."""
    given = first.get("input")
    shown = "" if given is None or isinstance(given, dict) else f" (got {str(given)[:60]!r})"
    if not where:
        return "the body must be a JSON object; send one, with Content-Type: application/json"
    match first["type"]:
        case "missing":
            return f"{where} is missing"
        case "model_attributes_type" | "dict_type":
            return f"{where} must be a JSON object{shown}"
        case "too_short" | "string_too_short":
            return f"{where} is empty"
        case "value_error" if "UploadFile" in first["msg"]:
            return f"{where} must be a file, sent as multipart/form-data{shown}"
    return f"{where}: {first['msg'].lower()}{shown}"


async def handle_http(request: Request, error) -> JSONResponse:
    """Exception handler of Starlette's own errors, such as an unknown path."""
    details = {
        404: "there is no such path; /openapi.json lists those there are",
        405: f"this path takes {(error.headers or {}).get('Allow', 'other methods')} only",
        413: "its body is too large",
    }
    detail = details.get(error.status_code, str(error.detail).lower())
    message = f"{request.method} {request.url.path}: {detail}"
    return error_response(error.status_code, message, headers=error.headers)
