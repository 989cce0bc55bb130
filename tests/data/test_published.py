"""Published lists: each of them comes, is the published one, and what goes wrong on the way is one line."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import SHARED

from pcr_seg.data import published
from pcr_seg.data.published import MIRROR, PUBLISHED, SHA256, address, fetch, fetch_all
from pcr_seg.data.sources import read_list

LISTS = SHARED / "splits"
needs_lists = pytest.mark.skipif(not LISTS.is_dir(), reason=f"the published lists are not in {LISTS}")
FILES = {"labeled": b"2007_000032\n2007_000039", "unlabeled": b"2008_000001\n2008_000002\n2008_000003"}
PLACE = "u2pl/pascal/92"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, silently; names ending on .short break off, those on .hang never come."""

    def log_message(self, *arguments) -> None:
        self.server.requests.append(self.path)

    def do_GET(self) -> None:
        if Path(self.translate_path(self.path + ".hang")).exists():
            self.server.stop.wait(10)
        elif (short := Path(self.translate_path(self.path + ".short"))).exists():
            self.send_response(200)
            self.send_header("Content-Length", str(short.stat().st_size + 7))
            self.end_headers()
            self.wfile.write(short.read_bytes())
        else:
            super().do_GET()


@contextmanager
def serving(folder: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of a folder's files on a free port, with the paths that were asked for in `requests`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        server.requests, server.stop = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """A mirror that holds one split, of made-up names whose checksums stand in the table."""
    for part, content in FILES.items():
        file = tmp_path / "mirror" / PLACE / f"{part}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        monkeypatch.setitem(SHA256, f"{PLACE}/{part}.txt", hashlib.sha256(content).hexdigest())
    with serving(tmp_path / "mirror") as server:
        monkeypatch.setenv(MIRROR, server.url)
        yield server


def fails(folder: Path, part: str, reason: str, **arguments) -> None:
    """Fetching fails with one line that names the address, the place, the checksum, and leaves nothing behind."""
    with pytest.raises(ValueError, match=reason) as caught:
        fetch("voc", "u2pl", 92, folder, **arguments)
    text, file = str(caught.value), f"{PLACE}/{part}.txt"
    assert "\n" not in text
    assert address(file) in text and str(folder / file) in text and SHA256[file] in text
    assert not (folder / file).exists()
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name not in ("labeled.txt",)]


def test_a_list_is_downloaded_once_and_verified_always(mirror, tmp_path):
    path = fetch("voc", "u2pl", 92, tmp_path / "lists")
    assert path == tmp_path / "lists" / PLACE / "labeled.txt"
    assert path.read_bytes() == FILES["labeled"]
    assert path.with_name("unlabeled.txt").read_bytes() == FILES["unlabeled"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["labeled.txt", "unlabeled.txt"]
    assert mirror.requests == [f"/{PLACE}/labeled.txt", f"/{PLACE}/unlabeled.txt"]
    assert fetch("voc", "u2pl", 92, str(tmp_path / "lists")) == path
    assert len(mirror.requests) == 2
    path.with_name("unlabeled.txt").unlink()
    fetch("voc", "u2pl", 92, tmp_path / "lists")
    assert mirror.requests[2:] == [f"/{PLACE}/unlabeled.txt"]


@pytest.mark.parametrize("part", ["labeled", "unlabeled"])
def test_a_list_that_was_changed_is_refused_and_left_alone(mirror, tmp_path, part):
    path = fetch("voc", "u2pl", 92, tmp_path).with_name(f"{part}.txt")
    path.write_bytes(FILES[part].replace(b"0", b"1", 1))
    with pytest.raises(
        ValueError, match=r"SHA-256 is \w{64} instead of \w{64}, .*; remove it, and it is down"
    ) as caught:
        fetch("voc", "u2pl", 92, tmp_path)
    text, file = str(caught.value), f"{PLACE}/{part}.txt"
    assert text.startswith(f"{path}: ") and SHA256[file] in text and address(file) in text and "\n" not in text
    assert path.read_bytes() != FILES[part]
    assert len(mirror.requests) == 2


@pytest.mark.parametrize("part", ["labeled", "unlabeled"])
def test_a_download_with_other_content_is_refused(mirror, tmp_path, part):
    (tmp_path / "mirror" / PLACE / f"{part}.txt").write_bytes(b"<html>log in</html>")
    fails(tmp_path / "lists", part, r"what came has SHA-256 \w{64}, so it is not the published list; download it by")


@pytest.mark.parametrize("part", ["labeled", "unlabeled"])
def test_a_download_that_breaks_off_is_refused(mirror, tmp_path, part):
    file = tmp_path / "mirror" / PLACE / f"{part}.txt"
    file.rename(f"{file}.short")
    size = len(FILES[part])
    fails(tmp_path / "lists", part, rf"the connection ended after {size} of {size + 7} bytes; download it by hand to")


def test_a_download_without_end_is_given_up(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr("pcr_seg.data.published.LARGEST", 3)
    fails(tmp_path / "lists", "labeled", r"what came is larger than any list; download it by hand to")


def test_a_list_that_is_not_there(mirror, tmp_path):
    (tmp_path / "mirror" / PLACE / "unlabeled.txt").unlink()
    fails(tmp_path / "lists", "unlabeled", r"HTTP Error 404: File not found; download it by hand to")


def test_a_server_that_hangs(mirror, tmp_path):
    (tmp_path / "mirror" / PLACE / "labeled.txt.hang").touch()
    started = time.monotonic()
    fails(tmp_path / "lists", "labeled", r"timed out; download it by hand to", timeout=0.2)
    assert time.monotonic() - started < 5


def test_no_server(mirror, tmp_path, monkeypatch):
    with serving(tmp_path) as server:
        gone = server.url
    monkeypatch.setenv(MIRROR, gone)
    fails(
        tmp_path / "lists", "labeled", r"Connection refused.*; download it by hand to .*, or name a mirror in PCR_SEG"
    )
    monkeypatch.setenv(MIRROR, "mirror/lists")
    fails(tmp_path / "lists", "labeled", r"unknown url type.*; download it by hand to")


def test_a_folder_that_cannot_be_written(mirror, tmp_path):
    (tmp_path / "lists").write_text("a file")
    with pytest.raises(
        ValueError, match=r"labeled\.txt: .*(exists|Not a directory).*; download it by hand to"
    ) as caught:
        fetch("voc", "u2pl", 92, tmp_path / "lists")
    assert "\n" not in str(caught.value)


def test_what_was_never_published_is_none(tmp_path):
    assert fetch("synthetic", "u2pl", 92, tmp_path) is None
    assert fetch("voc", "u2pl", 93, tmp_path) is None
    assert fetch("voc", "drawn", 92, tmp_path) is None
    with pytest.raises(ValueError, match=r"voc: no folder for the u2pl list of 92 images; set lists, or family=drawn"):
        fetch("voc", "u2pl", 92, None)


def test_addresses(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    pcr, unimatch = published.REPOSITORIES["u2pl"], published.REPOSITORIES["cps"]
    assert address("u2pl/pascal/92/labeled.txt") == f"{pcr}/pascal/92/labeled.txt"
    assert address("cps/cityscapes/1_8/unlabeled.txt") == f"{unimatch}/cityscapes/1_8/unlabeled.txt"
    assert pcr.startswith("https://") and unimatch.startswith("https://")
    monkeypatch.setenv(MIRROR, "http://localhost/lists/")
    assert address("cps/cityscapes/1_8/labeled.txt") == "http://localhost/lists/cps/cityscapes/1_8/labeled.txt"


def test_the_table_is_complete():
    places = [place for counts in PUBLISHED.values() for place in counts.values()]
    unlabeled = {place for place in places if not place.startswith("unimatch_v2/")}  # which publishes the labeled alone
    files = {f"{place}/labeled.txt" for place in places} | {f"{place}/unlabeled.txt" for place in unlabeled}
    assert files == set(SHA256)
    assert len(set(places)) == len(places) == 38
    assert len(set(SHA256.values())) == len(SHA256) and all(len(value) == 64 for value in SHA256.values())
    assert {key: list(counts) for key, counts in PUBLISHED.items()} == {
        ("voc", "u2pl"): [92, 183, 366, 732, 1464],
        ("voc", "cps"): [92, 183, 366, 732, 1464],
        ("voc_aug", "u2pl"): [662, 1323, 2646, 5291],
        ("voc_aug", "cps"): [662, 1323, 2646, 5291],
        ("cityscapes", "u2pl"): [186, 372, 744, 1488],
        ("cityscapes", "cps"): [100, 186, 372, 744, 1488],
        ("ade20k", "unimatch_v2"): [316, 631, 1263, 2526, 5052, 10105],
        ("coco", "unimatch_v2"): [232, 463, 925, 1849, 3697],
    }


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> Path:
    """Every published list, downloaded."""
    folder = tmp_path_factory.mktemp("lists")
    with pytest.MonkeyPatch.context() as patch, serving(LISTS) as server:
        patch.setenv(MIRROR, server.url)
        assert [fetch_all(name, folder) for name in ("voc", "voc_aug", "cityscapes", "synthetic")] == [10, 8, 9, 0]
        assert len(server.requests) == sum(not file.startswith("unimatch_v2/") for file in SHA256)
    return folder


def labeled(folder: Path, name: str, family: str) -> dict[int, set[str]]:
    places = PUBLISHED[name, family].items()
    return {count: set(read_list(folder / place / "labeled.txt")) for count, place in places}


@needs_lists
@pytest.mark.parametrize(("name", "family"), [key for key in PUBLISHED if key[1] != "unimatch_v2"])
def test_lists_have_their_counts_and_make_up_the_training_set(downloaded, name, family):
    val = set(read_list(LISTS / ("u2pl/cityscapes/val.txt" if name == "cityscapes" else "cps/pascal/val.txt")))
    unions = []
    for count in PUBLISHED[name, family]:
        first = fetch(name, family, count, downloaded)
        one, other = read_list(first), read_list(first.with_name("unlabeled.txt"))
        assert len(one) == len(set(one)) == count
        assert len(one) + len(other) == len({*one, *other}) == (2975 if name == "cityscapes" else 10582)
        assert not {*one, *other} & val
        unions.append({*one, *other})
    assert all(union == unions[0] for union in unions)


@needs_lists
def test_the_families_differ(downloaded):
    ours, theirs = (labeled(downloaded, "cityscapes", family) for family in ("u2pl", "cps"))
    assert {n: len(ours[n] & theirs[n]) for n in ours} == {186: 8, 372: 48, 744: 182, 1488: 720}
    assert theirs[186] < theirs[372] < theirs[744] < theirs[1488]
    assert not any(ours[a] < ours[b] for a, b in ((186, 372), (372, 744), (744, 1488)))


@needs_lists
def test_classic_lists_are_one_draw_in_both_families_and_not_nested(downloaded):
    classic = labeled(downloaded, "voc", "u2pl")
    assert classic == labeled(downloaded, "voc", "cps")
    assert not any(classic[a] < classic[b] for a, b in ((92, 183), (183, 366), (366, 732)))
    assert all(ids <= classic[1464] for ids in classic.values())


@needs_lists
def test_blender_lists_differ_in_their_masks_quality(downloaded):
    original = labeled(downloaded, "voc", "u2pl")[1464]
    u2pl, cps = (labeled(downloaded, "voc_aug", family) for family in ("u2pl", "cps"))
    assert [len(ids & original) for ids in u2pl.values()] == [662, 1323, 1464, 1464]
    assert [len(ids & original) for ids in cps.values()] == [93, 193, 388, 742]
    assert u2pl[662] < u2pl[1323] < u2pl[2646] and not u2pl[2646] < u2pl[5291]
    assert cps[662] < cps[1323] < cps[2646] < cps[5291]
    for count, part in ((662, "1_16"), (1323, "1_8"), (2646, "1_4")):  # PCR's copies
        copy, original = LISTS / f"u2pl/pascal/{count}_cps", LISTS / f"cps/pascal/{part}"
        assert read_list(copy / "labeled.txt") == read_list(original / "labeled.txt")
