"""Creates the virtual environment that `make` runs in; does nothing when it is up to date.

    python3 launch/setup_venv.py .venv

Needs a Python that the project supports and the package index, nothing else. Debian and Ubuntu
ship a Python without ``ensurepip`` and without pip: there the pip wheel is downloaded from the same
index that pip would use (``PIP_INDEX_URL``, then pip's configuration files, then pypi.org) and
checked against the digest below.

A stamp inside the environment holds a digest of everything the set-up depends on. An installation
that was interrupted is started again from nothing, since half a package can look complete.
"""

from __future__ import annotations  # so that a Python that is too old gets one line of error

import base64
import configparser
import fcntl
import hashlib
import html.parser
import importlib.util
import os
import pathlib
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
SYSTEM_SETTINGS = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python3 launch/setup_venv.py DIRECTORY")
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            f"alignjax needs Python {dotted(OLDEST)} to {dotted(NEWEST)}, and {sys.executable} is "
            f"{dotted(sys.version_info[:3])}: choose another with, for example, "
            "`make PYTHON=python3.12`"
        )
    # Two `make` at once would install into the same folder.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        set_up(pathlib.Path(sys.argv[1]).resolve())
    finally:
        os.close(lock)


def set_up(folder: pathlib.Path) -> None:
    """Creates or updates the environment; returns at once when the stamp says it is right."""
    stamp, unfinished = folder / "alignjax.stamp", folder / "alignjax.unfinished"
    python, digest = folder / "bin" / "python", digest_of_inputs()
    finished = stamp.exists() and python.exists() and not unfinished.exists()
    if finished and stamp.read_text() == digest:
        return
    start = time.monotonic()
    if unfinished.exists() or ((folder / "pyvenv.cfg").exists() and not python.exists()):
        say(f"{folder} is incomplete, or its Python no longer exists: starting again")
        shutil.rmtree(folder)
    elif python.exists() and version_of(python) != dotted(sys.version_info[:2]):
        sys.exit(
            f"{folder} belongs to Python {version_of(python)}, and this is "
            f"{dotted(sys.version_info[:2])}: remove it (`make clean-venv`) or choose another "
            "folder (`make VENV=.venv-other`)"
        )
    if not python.exists():
        say(f"creating {folder} with Python {dotted(sys.version_info[:3])}")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        create(folder)
    unfinished.touch()
    stamp.unlink(missing_ok=True)
    if subprocess.run([python, "-c", "import pip"], stderr=subprocess.DEVNULL).returncode:
        install_pip(python)
    say("installing the packages pinned in requirements.txt (about 1.2 GB on disk)")
    pip(python, "-r", str(ROOT / "requirements.txt"))
    say("installing alignjax itself, as a link to this folder")
    link = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT))
    pip(python, *link)
    stamp.write_text(digest)
    unfinished.unlink()
    say(f"done in {time.monotonic() - start:.0f} s")


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def digest_of_inputs() -> str:
    """Computes a digest of the pins, pyproject.toml, this script, the Python and the folder.

    The folder counts because the scripts in an environment name their interpreter by full path.
    """
    digest = hashlib.sha256()
    for path in (ROOT / "requirements.txt", ROOT / "pyproject.toml", pathlib.Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {ROOT}".encode())
    return digest.hexdigest()


def version_of(python: pathlib.Path) -> str:
    """Finds an environment's Python version, such as ``3.11``; empty when it no longer runs."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


def create(folder: pathlib.Path) -> None:
    import venv

    with_pip = importlib.util.find_spec("ensurepip") is not None
    venv.EnvBuilder(with_pip=with_pip, symlinks=True).create(folder)


def pip(python: pathlib.Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    # setuptools warns about every editable installation, at length.
    code = subprocess.run(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}).returncode
    if code:
        sys.exit(f"setup: pip stopped with exit code {code}; its last lines above say why")


def install_pip(python: pathlib.Path) -> None:
    """Installs pip from its wheel, which can run itself, after checking the wheel's digest."""
    settings = pip_settings()
    page = f"{index_url(settings)}/pip/"
    context = ssl.create_default_context()
    if settings.get("cert"):
        context.load_verify_locations(settings["cert"])
    say(f"this Python has no ensurepip: fetching {PIP_WHEEL} from {without_password(page)}")
    try:
        links = Links()
        links.feed(read(page, context).decode())
        names = {
            urllib.parse.unquote(urllib.parse.urlparse(x).path).split("/")[-1]: x
            for x in links.found
        }
        if PIP_WHEEL not in names:
            raise OSError(f"the page lists no {PIP_WHEEL}")
        wheel = read(urllib.parse.urljoin(page, names[PIP_WHEEL]), context)
        found = hashlib.sha256(wheel).hexdigest()
        if found != PIP_SHA256:
            raise OSError(f"{PIP_WHEEL} has sha256 {found}, wanted {PIP_SHA256}")
    except OSError as error:
        sys.exit(
            f"setup: cannot fetch pip from {without_password(page)}: {error}. "
            "Check the network and PIP_INDEX_URL, or install Debian's package python3-venv"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary, PIP_WHEEL)
        path.write_bytes(wheel)
        code = [str(python), str(path / "pip"), "install", "--quiet", "--no-index", str(path)]
        if subprocess.run(code).returncode:
            sys.exit("setup: pip could not install itself; its last lines above say why")


class Links(html.parser.HTMLParser):
    """Collects the addresses on a page of a package index (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def pip_settings() -> dict[str, str]:
    """Reads pip's settings for ``pip install``: files, weakest first, then the environment."""
    home = pathlib.Path.home()
    config = pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    parser = configparser.RawConfigParser()
    parser.read([*SYSTEM_SETTINGS, home / ".pip/pip.conf", config / "pip/pip.conf"])
    parser.read(os.environ.get("PIP_CONFIG_FILE", ""))
    settings: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            settings.update({k.replace("_", "-"): v for k, v in parser.items(section)})
    for name in ("index-url", "cert"):
        if value := os.environ.get("PIP_" + name.upper().replace("-", "_")):
            settings[name] = value
    return settings


def index_url(settings: dict[str, str]) -> str:
    return settings.get("index-url", "https://pypi.org/simple").rstrip("/")


def without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.split("@")[-1]).geturl()


def read(url: str, context: ssl.SSLContext) -> bytes:
    """Downloads an address, which may contain a name and a password as pip's may."""
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(without_password(url), headers={"Accept": "text/html, */*"})
    if parts.username is not None:
        pair = f"{parts.username}:{parts.password or ''}"
        token = base64.b64encode(urllib.parse.unquote(pair).encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, context=context, timeout=60) as response:
        return response.read()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nsetup: interrupted; the next call starts again")
