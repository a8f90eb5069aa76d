"""What a person sees of a run: a progress bar or lines in a log, and scalars in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Report:
    """A context manager; says nothing in a process that is not the first."""

    def __init__(self, folder: Path, title: str, total: int, done: int, active: bool) -> None:
        self._folder, self._title, self._total, self._done = folder, title, total, done
        self._active = active
        self._console = Console(stderr=True)
        self._since = (time.monotonic(), done)

    def __enter__(self) -> Report:
        if not self._active:
            return self
        from torch.utils.tensorboard import (
            SummaryWriter,
        )  # takes a second; tests without it stay fast

        self._writer = SummaryWriter(str(self._folder), purge_step=self._done + 1)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            self._title, total=self._total, completed=self._done, news=""
        )
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            self._bar.stop()
            self._writer.close()

    def values(self, done: int, values: Mapping[str, float], group: str = "train") -> None:
        """Show ``values`` as the state after ``done`` iterations."""
        if not self._active:
            return
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, done)
        news = " ".join(f"{name} {value:.5g}" for name, value in values.items())
        if self._console.is_terminal and group == "train":
            self._bar.update(self._task, news=news)
        else:
            line = f"{self._title} {done}/{self._total} {news} {self._pace(done)}"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Say something that is no value; nothing if ``text`` is empty."""
        if self._active and text:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self._active:
            self._bar.update(self._task, completed=done)

    def _pace(self, done: int) -> str:
        """Iterations a second since the last line, and the time left at that pace."""
        now = time.monotonic()
        rate = (done - self._since[1]) / max(now - self._since[0], 1e-9)
        if done == self._since[1]:
            return ""
        self._since = (now, done)
        minutes = (self._total - done) / rate / 60
        return f"({rate:.2f} it/s, {minutes:.0f} min left)"
