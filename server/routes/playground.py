"""The pages of the server: `GET /` is the playground, `GET /docs` the API reference, `GET /static/...` their
scripts and styles."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

router = APIRouter()

FOLDER = Path(__file__).parents[1] / "static"
FILES = StaticFiles(directory=FOLDER)
SWAGGER_FILES = StaticFiles(packages=[("fastapi_swagger", "resources")])
# Scripts and styles of this server only, and requests to this server only.
REFERENCE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# And no HTML from strings, which Swagger UI needs.
POLICY = f"{REFERENCE_POLICY}; require-trusted-types-for 'script'"
# A file is revalidated at each use: a page and its scripts are of one version.
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@router.get("/", include_in_schema=False)
async def playground() -> FileResponse:
    """Images and captions in a browser."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/docs", include_in_schema=False)
async def reference() -> FileResponse:
    """The API reference: Swagger UI."""
    headers = HEADERS | {"Content-Security-Policy": REFERENCE_POLICY}
    return FileResponse(FOLDER / "docs.html", headers=headers)


@router.get("/static/swagger-ui/{path:path}", include_in_schema=False)
async def swagger_file(path: str, request: Request) -> Response:
    """A file of Swagger UI. Raises HTTPException 404."""
    return await _file(SWAGGER_FILES, path, request)


@router.get("/static/{path:path}", include_in_schema=False)
async def static_file(path: str, request: Request) -> Response:
    """A script or style of the pages. Raises HTTPException 404."""
    return await _file(FILES, path, request)


async def _file(files: StaticFiles, path: str, request: Request) -> Response:
    response = await files.get_response(path, request.scope)
    response.headers.update(HEADERS)
    return response
