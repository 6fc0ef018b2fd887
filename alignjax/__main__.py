"""``python -m alignjax``: see `alignjax.cli`."""

from alignjax.cli import main

if __name__ == "__main__":
    main()
