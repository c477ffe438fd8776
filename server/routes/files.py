"""`GET /v1/files/{name}`: stored images behind signed URLs, which need no API key."""

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from server.schemas.errors import ApiError, store_unavailable
from server.service import InjectedService
from server.store import names
from server.store.folder_store import FolderStore
from server.store.store import Store, StoreError

router = APIRouter()
FILES = StaticFiles()  # answers ranges and conditions


@router.get("/v1/files/{name}", operation_id="get_file")
async def get_file(
    name: str, request: Request, service: InjectedService, expires: str = "", signature: str = ""
) -> Response:
    """Download a stored image."""
    results = service.results
    if results is None or results.links is None:
        raise ApiError(404, "not_found", "This server has no stored images.")
    results.links.check(name, expires, signature)
    response = await _file(results.store, name, request)
    response.headers.update(_headers(name, int(expires) - int(results.links.now())))
    return response


async def _file(store: Store, name: str, request: Request) -> Response:
    """Raises ApiError 404 or 502."""
    if isinstance(store, FolderStore):
        path = store.path(name)
        try:
            return FILES.file_response(path, await asyncio.to_thread(path.stat), request.scope)
        except FileNotFoundError:
            raise _deleted() from None
    try:
        data = await store.get(name)
    except StoreError:
        raise store_unavailable() from None
    if data is None:
        raise _deleted()
    return Response(data, media_type=names.media_type(name))


def _headers(name: str, seconds: int) -> dict[str, str]:
    """Any web page may show and read the image."""
    return {
        "Content-Type": names.media_type(name),
        "Cache-Control": f"private, max-age={seconds}, immutable",
        "Content-Disposition": f'inline; filename="{names.download_name(name)}"',
        "X-Content-Type-Options": "nosniff",
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def _deleted() -> ApiError:
    return ApiError(404, "file_not_found", "The image was deleted.")
