"""``python -m alignjax``: see `alignjax.cli`."""

import sys

try:
    from alignjax.cli import main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("alignjax"):
        raise
    sys.exit(
        f"alignjax: {sys.executable} has no package {error.name}: run `make setup` and use "
        ".venv/bin/python, or pip install alignjax there"
    )

if __name__ == "__main__":
    main()
