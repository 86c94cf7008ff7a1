"""Errors in the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from fastapi import Request
from fastapi.responses import JSONResponse

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}


class ApiError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_response(status: int, message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    """The error as an HTTP response."""
    kind = TYPES.get(status, "invalid_request_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


async def handle_api_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of ApiError."""
    assert isinstance(error, ApiError)
    return error_response(error.status, error.message, error.param, error.code)


async def handle_user_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of TonyError: what was sent can't be worked with."""
    return error_response(400, str(error))


async def handle_invalid(request: Request, error) -> JSONResponse:
    """Exception handler of FastAPI's validation: the first thing that is wrong, in a sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    given = first.get("input")
    shown = "" if given is None or isinstance(given, dict) else f" (got {str(given)[:60]!r})"
    return error_response(400, f"{where or 'body'}: {first['msg'].lower()}{shown}", where or None)


async def handle_http(request: Request, error) -> JSONResponse:
    """Exception handler of Starlette's own errors, such as an unknown path."""
    detail = "its body is too large" if error.status_code == 413 else str(error.detail).lower()
    message = f"{request.method} {request.url.path}: {detail}"
    return error_response(error.status_code, message)
