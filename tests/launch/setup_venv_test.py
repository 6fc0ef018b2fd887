"""The script that makes the virtual environment, without the network and without installing."""

import hashlib
import http.server
import importlib.util
import io
import os
import pathlib
import sys
import threading
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, with neither pip's settings nor the home folder of this machine."""
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "launch" / "setup_venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "SYSTEM_SETTINGS", ())
    monkeypatch.setenv("HOME", str(tmp_path))
    return module


@pytest.fixture
def run(script, monkeypatch, tmp_path):
    """Calls main() on a folder; what it would have created and installed is recorded."""
    done = []

    def create(folder):
        done.append("create")
        (folder / "pyvenv.cfg").touch()
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(script, "create", create)
    monkeypatch.setattr(script, "install_pip", lambda python: None)
    monkeypatch.setattr(script, "pip", lambda python, *arguments: done.append(arguments[-1]))
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", str(tmp_path / "venv")])

    def call():
        done.clear()
        script.main()
        return list(done)

    return call


def test_creates_once_and_installs_the_pins_then_the_project(run):
    assert run() == ["create", str(ROOT / "requirements.txt"), str(ROOT)]
    assert run() == []


def test_changed_pins_are_installed_into_the_same_environment(run, script, monkeypatch):
    run()
    monkeypatch.setattr(script, "digest_of_inputs", lambda: "of other pins")
    assert run() == [str(ROOT / "requirements.txt"), str(ROOT)]
    assert run() == []


def test_an_interrupted_installation_starts_afresh(run, script, monkeypatch, tmp_path):
    pip = script.pip

    def interrupted(python, *arguments):
        (tmp_path / "venv" / "half-a-package").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (tmp_path / "venv" / "half-a-package").exists()
    monkeypatch.setattr(script, "pip", pip)
    assert run()[0] == "create"
    assert not (tmp_path / "venv" / "half-a-package").exists()


def test_an_environment_whose_python_is_gone_starts_afresh(run, tmp_path):
    run()
    (tmp_path / "venv" / "bin" / "python").unlink()
    (tmp_path / "venv" / "bin" / "python").symlink_to("gone")
    assert run()[0] == "create"


def test_the_environment_of_another_python_is_left_alone(run, script, monkeypatch, tmp_path):
    run()
    monkeypatch.setattr(script, "digest_of_inputs", lambda: "of other pins")
    monkeypatch.setattr(script, "version_of", lambda python: "3.99")
    with pytest.raises(SystemExit, match=r"belongs to Python 3\.99.*make clean-venv"):
        run()
    assert (tmp_path / "venv" / "bin" / "python").exists()


@pytest.mark.parametrize("version", [(3, 10, 12), (3, 15, 0)])
def test_a_python_that_will_not_do_gets_one_line(run, monkeypatch, version, tmp_path):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as stop:
        run()
    assert "needs Python 3.11 to 3.14" in stop.value.code
    assert "\n" not in stop.value.code
    assert not (tmp_path / "venv").exists()


def test_settings_are_read_as_pip_reads_them(script, monkeypatch, tmp_path):
    assert script.index_url({}) == "https://pypi.org/simple"
    config = tmp_path / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text("[global]\nindex_url = https://a.example/simple\ncert = a.pem\n")
    assert script.pip_settings() == {"index-url": "https://a.example/simple", "cert": "a.pem"}
    config.write_text(config.read_text() + "[install]\nindex-url = https://b.example/simple\n")
    assert script.pip_settings()["index-url"] == "https://b.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple")
    assert script.index_url(script.pip_settings()) == "https://c.example/simple"


@pytest.fixture
def index(script, monkeypatch, tmp_path):
    """A package index on this machine, behind a password, with a wheel that notes its arguments."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("pip/__main__.py", "import sys; print('wheel ran:', *sys.argv[1:-1])")
    page = f'<a href="../files/{script.PIP_WHEEL}#sha256=0">x</a> <a href="pip-1.tar.gz">y</a>'
    pages = {"/simple/pip/": page.encode(), f"/simple/files/{script.PIP_WHEEL}": content.getvalue()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            if self.headers["Authorization"] != "Basic bWU6cCt3":  # me:p+w
                body = None
            self.send_response(200 if body else 401)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    host = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%2Bw@{host}/simple")
    monkeypatch.setattr(script, "PIP_SHA256", hashlib.sha256(content.getvalue()).hexdigest())
    yield host
    server.shutdown()
    thread.join()
    server.server_close()


def test_pip_is_fetched_from_the_index_and_installs_itself(script, index, capfd):
    script.install_pip(pathlib.Path(sys.executable))
    shown = capfd.readouterr().out
    assert "wheel ran: install --quiet --no-index" in shown
    assert f"http://{index}/simple/pip/" in shown
    assert "p%2Bw" not in shown


def test_a_wheel_with_another_digest_is_not_run(script, index, monkeypatch, capfd):
    monkeypatch.setattr(script, "PIP_SHA256", "0" * 64)
    with pytest.raises(SystemExit, match=r"has sha256 .*, wanted 0000"):
        script.install_pip(pathlib.Path(sys.executable))
    assert "wheel ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("me:", "you:"), "401"),
        (lambda url: url.replace("/simple", "/nothing"), "401"),
        (lambda url: "http://127.0.0.1:1/simple", "refused"),
    ],
)
def test_an_index_that_does_not_answer_is_named(script, index, monkeypatch, change, message):
    url = change(os.environ["PIP_INDEX_URL"])
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(SystemExit, match=rf"cannot fetch pip from .*{message}.*python3-venv"):
        script.install_pip(pathlib.Path(sys.executable))
