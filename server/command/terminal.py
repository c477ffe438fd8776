"""A progress bar and previews on stderr, if it is a terminal."""

import io
from types import TracebackType
from typing import Self

from PIL import Image as Pictures
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.text import Text

from server.command.streaming import Step

COLUMNS = 48  # width of a preview; a character shows two pixels, one above the other
UPPER_HALF = "▀"


class Terminal:
    """Shows the events of a request while it is a context."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self.shows_previews = console.is_terminal and console.color_system in ("truecolor", "256")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("waiting", total=None)
        self._live = Live(self._progress, console=console, transient=True, auto_refresh=console.is_terminal)
        self._steps: dict[int, int] = {}

    def step(self, step: Step, images: int) -> None:
        """A step of one of so many images is done."""
        self._steps[step.image] = step.step
        done, total = sum(self._steps.values()), step.steps * images
        self._progress.update(self._task, description="denoising", completed=done, total=total)

    def preview(self, data: bytes) -> None:
        """Show an image file in half blocks below the bar."""
        with Pictures.open(io.BytesIO(data)) as image:
            self._live.update(Group(self._progress, blocks(image.convert("RGB"))))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def blocks(image: Pictures.Image) -> Text:
    """The image, at most COLUMNS wide, as text in colours."""
    width = min(COLUMNS, image.width)
    height = max(2, round(image.height * width / image.width / 2) * 2)
    small = image.resize((width, height))
    text = Text()
    for row in range(0, height, 2):
        for column in range(width):
            upper, lower = (_colour(small, column, row + offset) for offset in (0, 1))
            text.append(UPPER_HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _colour(image: Pictures.Image, column: int, row: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*image.getpixel((column, row)))  # type: ignore[misc]
