"""`GET /`: a static page to try the API in a browser."""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()

PAGE = (Path(__file__).parents[1] / "static" / "index.html").read_text("utf-8")


@router.get("/", include_in_schema=False)
async def playground() -> HTMLResponse:
    """The page, limited to its own script and to requests to this server."""
    return HTMLResponse(
        PAGE, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    )


def _policy(page: str) -> str:
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


POLICY = _policy(PAGE)
