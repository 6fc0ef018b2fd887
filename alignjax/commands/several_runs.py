"""Names the runs of a verb that draws several into one picture."""

import pathlib
from collections.abc import Sequence

from alignjax.errors import UserError


def by_name(paths: Sequence[str], out: str) -> dict[str, pathlib.Path]:
    """Names runs by their folders.

    Args:
      paths: of the folders, the ``--runs``.
      out: the picture to draw them into.

    Raises:
      UserError: two folders have one name, or the picture is no PNG.
    """
    folders = [pathlib.Path(path) for path in paths]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"--runs: wanted runs of different names, found {', '.join(names)}")
    if not out.endswith(".png"):
        raise UserError(f"--out: wanted a name that ends in .png, found {out!r}")
    return dict(zip(names, folders, strict=True))
