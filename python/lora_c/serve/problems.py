"""What a client is told when a request fails, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiProblem(Exception):
    """A request that cannot be answered.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
        What was expected, what was given, and the way out.
    param : str, optional
        The field that is wrong.
    code : str, optional
        A word for programs.
    headers : mapping, optional
        Of the response.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))  # it may name what was given
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def as_json(self) -> dict[str, Any]:
        """The body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The response."""
        return JSONResponse(self.as_json(), self.status, self.headers)


def too_busy(message: str, seconds: float = 1.0) -> ApiProblem:
    """Come again later."""
    return ApiProblem(429, message, code="too_many_requests", headers={"Retry-After": str(max(1, round(seconds)))})
