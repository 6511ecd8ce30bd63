"""The page for people."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

router = APIRouter(include_in_schema=False)

INDEX = Path(__file__).parents[1] / "page" / "index.html"

# uPlot sets styles of elements.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'"
)


@router.get("/")
def index() -> FileResponse:
    """The page; nothing on it is loaded from elsewhere."""
    return FileResponse(INDEX, media_type="text/html", headers={"Content-Security-Policy": _POLICY})
