"""What is sent names nobody."""

from hasten.hardware.redact import home, names_here, redacted


def test_names_paths_and_cards_go():
    values = {
        "/home/alice/.venv": ["/home/alice/x alice@box", "/Users/bob/y", 5, None, True],
        "said": "GPU-8a56d1c2-1111-2222 MIG-8a56d1c2-1111-2222 on box.example.org, alicee, box-1",
        "own": "/data/alice/lib and /data/alicex/lib",
    }
    names = {"alice": "someone", "box": "some-host", "box.example.org": "some-host"}
    assert redacted(values, names, ["/data/alice"]) == {
        "~/.venv": ["~/x someone@some-host", "~/y", 5, None, True],
        "said": "GPU-... MIG-... on some-host, alicee, box-1",
        "own": "~/lib and /data/alicex/lib",
    }


def test_common_names_stay(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setattr("platform.node", lambda: "spark-1234.local")
    assert names_here() == {"spark-1234.local": "some-host", "spark-1234": "some-host"}

    def nobody():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert "someone" not in names_here().values()
    assert redacted("root", names_here()) == "root"


def test_a_home_that_cannot_be_told(monkeypatch):
    assert home()

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", none)
    assert home() == ""
    assert redacted("/root/x", {}, [""]) == "/root/x"


def test_logins_in_addresses():
    assert redacted("via http://bob:secret@proxy.corp:8080/x", {}) == "via http://...@proxy.corp:8080/x"
