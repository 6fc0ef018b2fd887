"""Writes TensorBoard's files."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("alignjax")

FLUSH_SECONDS = 30  # between flushes, which wait for the disk
COMPARED = ("eval/loss", "eval/rewards/accuracies", "train/loss")  # shown with hyperparameters


class Board:
    """Writes a TensorBoard file, on the calling thread.

    The library's own writer uses a thread; if a full disk ended it, a training would wait forever.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        after_step: int,
        texts: dict[str, str],
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Opens a file; TensorBoard hides steps after ``after_step`` of earlier files.

        Args:
          folder: of the file.
          after_step: see above.
          texts: Markdown by name.
          settings: values for TensorBoard's page of hyperparameters.
        """
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._folder, self._flushed = folder, 0.0
        self._file: Any = None
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = event_file_writer.EventsWriter(str(folder / "events"))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._file.write_event(event_pb2.Event(step=after_step + 1, session_log=start))
            for name, text in texts.items():
                shown = summary.text(name, text)
                self._file.write_event(event_pb2.Event(step=after_step, summary=shown))
            if settings:
                named = {name: "none" if x is None else x for name, x in settings.items()}
                for shown in summary.hparams(named, dict.fromkeys(COMPARED))[:2]:
                    self._file.write_event(event_pb2.Event(summary=shown))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes metrics, unless an earlier write failed."""
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2

        if self._file is None:
            return
        with self._errors():
            for name, value in values.items():
                point = summary.scalar(name, value)
                event = event_pb2.Event(step=step, wall_time=time.time(), summary=point)
                self._file.write_event(event)
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._flushed = time.monotonic()
                self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with self._errors():
                self._file.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            log.warning("%s: not written any more (%s)", self._folder, error)
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            self._file = None
