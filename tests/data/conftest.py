"""What each test of `shared.data` starts with."""

import pytest

from shared.data import download, network, places
from shared.data.registry import REGISTRY
from tests.data.made_up import ENTRIES, Server
from tests.local_server import go_direct


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    """An empty cache, no mirror, no proxy, an empty registry, a folder for samples, and little patience."""
    for name in ("LLM_MIRROR", "LLM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    go_direct(monkeypatch)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(places, "SAMPLES", tmp_path / "samples")
    monkeypatch.setattr(network, "PAUSE", 0.01)
    monkeypatch.setattr(download, "dead_hosts", {})
    (tmp_path / "samples").mkdir()
    REGISTRY.clear()
    yield
    REGISTRY.clear()
    REGISTRY.update(ENTRIES)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "stick"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.setenv("LLM_MIRROR", str(folder))
    return folder


@pytest.fixture
def entries():
    """The course's own registry, whose files the tests make up."""
    REGISTRY.update(ENTRIES)
    return REGISTRY
