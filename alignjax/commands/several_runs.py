"""Names the runs of a command that plots several into one picture."""

import pathlib
from collections.abc import Sequence

from alignjax.errors import UserError


def by_name(paths: Sequence[str], out: str) -> dict[str, pathlib.Path]:
    """Names runs by their folders.

    Args:
      paths: the folders, from ``--runs``.
      out: the picture.

    Raises:
      UserError: two folders have the same name, or the picture is not a PNG.
    """
    folders = [pathlib.Path(path) for path in paths]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"--runs: wanted runs of different names, found {', '.join(names)}")
    if not out.endswith(".png"):
        raise UserError(f"--out: wanted a name that ends in .png, found {out!r}")
    return dict(zip(names, folders, strict=True))
