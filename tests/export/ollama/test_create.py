"""Creating a model: without a server, through the command, and what is refused before anything is sent."""

import stat
import sys

import pytest

from hasten.errors import CapabilityError, ConfigError, ModelError, RunError, StorageError
from hasten.export.ollama.create import Created, create
from hasten.export.ollama.modelfile import modelfile
from hasten.export.ollama.server import Server

NOBODY = "127.0.0.1:1"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "a folder"
    made.mkdir()
    (made / "m.gguf").write_bytes(b"GGUF")
    (made / "Modelfile").write_text(modelfile("m.gguf", None, ["</s>"]), encoding="utf-8")
    return made


@pytest.fixture
def old_server(monkeypatch):
    """A server that answers, of a version before files could be sent to it."""
    monkeypatch.setattr(Server, "version", lambda self: "0.5.4")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """An `ollama` on PATH that writes down what it is called with."""
    script = tmp_path / "bin" / "ollama"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport os, sys\nopen({str(tmp_path / 'called')!r}, 'w').write(repr(sys.argv[1:] + "
        "[os.environ['OLLAMA_HOST']]))\nprint('Error: no space left', file=sys.stderr)\n"
        f"sys.exit(os.path.exists({str(tmp_path / 'fail')!r}))\n",
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent))
    return tmp_path


def test_without_a_server_there_is_the_command_to_type(folder):
    why = f"no Ollama answers at http://{NOBODY} (OLLAMA_HOST names another place)"
    command = f"ollama create ada -f '{folder}/Modelfile'"
    assert create("ada", folder, host=NOBODY) == Created("ada", command, why=why)


def test_an_old_server_gets_it_through_the_command(folder, old_server, command):
    assert create("ada", folder, host=NOBODY) == Created("ada", version="0.5.4")
    called = ["create", "ada", "-f", str(folder / "Modelfile"), f"http://{NOBODY}"]
    assert (command / "called").read_text(encoding="utf-8") == repr(called)


def test_what_the_command_says_is_wrong_is_said(folder, old_server, command):
    (command / "fail").touch()
    with pytest.raises(RunError) as caught:
        create("ada", folder, host=NOBODY)
    assert caught.value.value == "Error: no space left"


def test_an_adapter_goes_through_the_command_of_versions_that_take_one(folder, monkeypatch, command):
    (folder / "Modelfile").write_text(modelfile("m.gguf", None, [], adapter="a.gguf"), encoding="utf-8")
    monkeypatch.setattr(Server, "version", lambda self: "0.30.0")
    assert create("ada", folder, host=NOBODY).version == "0.30.0"
    assert (command / "called").is_file()
    monkeypatch.setattr(Server, "version", lambda self: "0.35.0")
    with pytest.raises(CapabilityError, match="ADAPTER"):
        create("ada", folder, host=NOBODY)


def test_an_old_server_without_the_command(folder, old_server, monkeypatch):
    monkeypatch.setenv("PATH", "")
    created = create("ada", folder, host=NOBODY)
    assert created.command.startswith("ollama create ada") and "the command `ollama` alone" in created.why


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b/c/d", "../a", "a:", ":v1", "ada:v1:v2", "-a", "a..b", "my.space/ada", "ö"]
)
def test_names_are_refused_before_anything_is_read(name, tmp_path):
    with pytest.raises(ConfigError) as caught:
        create(name, tmp_path / "missing", host=NOBODY)
    assert repr(name) in caught.value.value
    assert "my-model" in caught.value.remedy


@pytest.mark.parametrize("source", ["/etc/passwd", "../m.gguf", "./sub/m.gguf", "llama3.2/x"])
def test_the_file_lies_beside_the_modelfile(folder, source):
    (folder / "Modelfile").write_text(f"FROM {source}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        create("ada", folder, host=NOBODY)
    assert source in caught.value.value


def test_files_that_are_missing(folder):
    (folder / "m.gguf").unlink()
    with pytest.raises(StorageError, match=r"m\.gguf: no such file"):
        create("ada", folder, host=NOBODY)
    (folder / "Modelfile").unlink()
    with pytest.raises(StorageError, match="Modelfile: no such file"):
        create("ada", folder, host=NOBODY)


def test_a_modelfile_that_is_none(folder):
    (folder / "Modelfile").write_bytes(b"FROM \xff\n")
    with pytest.raises(ModelError, match="not UTF-8"):
        create("ada", folder, host=NOBODY)
    (folder / "Modelfile").write_text("hello\n", encoding="utf-8")
    with pytest.raises(ModelError, match="hello"):
        create("ada", folder, host=NOBODY)
