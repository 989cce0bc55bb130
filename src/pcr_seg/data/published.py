"""The split lists that papers have published: their addresses and checksums, and their download.

Each family has lists of its own: u2pl those of U2PL and PCR; cps those of UniMatch (but PCR's for 5,291 images; of VOC
classic both have the same images);
unimatch_v2 those of UniMatch V2 for data sets of which UniMatch has none, with lists of labeled images only (all others
are unlabeled). Scores with the lists of one family cannot be compared with scores with another's. The lists belong to
their authors, so they are not part of this project but downloaded on first use; checksums make sure that everybody has
the same.
"""

import hashlib
import http.client
import io
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from rich import get_console
from rich.progress import wrap_file

REPOSITORIES = {
    "u2pl": (
        "https://raw.githubusercontent.com/HeimingX/semi_seg_proto/1b98ea6ba6cf8d41192eb4b36b5d056d0de02a49/data/splits"
    ),
    "cps": "https://raw.githubusercontent.com/LiheYoung/UniMatch/main/splits",
    "unimatch_v2": (
        "https://raw.githubusercontent.com/LiheYoung/UniMatch-V2/66d517c30ccec7ed157147148e687127686adf87/splits"
    ),
}
LARGEST = 1 << 24  # bytes that a download may have; a list has some hundred thousand
MIRROR = "PCR_SEG_SPLITS_URL"  # environment variable: address of a folder that holds u2pl/, cps/ and unimatch_v2/
# Number of training images of the published data sets, of which a split is a fraction.
NUM_TRAIN = {"voc": 1_464, "voc_aug": 10_582, "cityscapes": 2_975, "camvid": 367, "ade20k": 20_210, "coco": 118_287}
# Fractions are rounded up, but four of ADE20K's published ones are not: {training images: {rounded up: published}}.
ROUNDED_DOWN = {20_210: {632: 631, 1264: 1263, 2527: 2526, 5053: 5052}}
PUBLISHED = {  # (data set, family): {labeled images: folder}
    ("voc", "u2pl"): {n: f"u2pl/pascal/{n}" for n in (92, 183, 366, 732, 1464)},
    ("voc", "cps"): {n: f"cps/pascal/{n}" for n in (92, 183, 366, 732, 1464)},
    ("voc_aug", "u2pl"): {n: f"u2pl/pascal/{n}" for n in (662, 1323, 2646, 5291)},
    ("voc_aug", "cps"): {
        **{n: f"cps/pascal/{part}" for n, part in ((662, "1_16"), (1323, "1_8"), (2646, "1_4"))},
        5291: "u2pl/pascal/5291_cps",
    },
    ("cityscapes", "u2pl"): {n: f"u2pl/cityscapes/{n}" for n in (186, 372, 744, 1488)},
    ("cityscapes", "cps"): {
        n: f"cps/cityscapes/{part}"
        for n, part in ((100, "1_30"), (186, "1_16"), (372, "1_8"), (744, "1_4"), (1488, "1_2"))
    },
    ("ade20k", "unimatch_v2"): {
        n: f"unimatch_v2/ade20k/1_{round(20_210 / n)}" for n in (316, 631, 1263, 2526, 5052, 10_105)
    },
    ("coco", "unimatch_v2"): {-(-118_287 // n): f"unimatch_v2/coco/1_{n}" for n in (512, 256, 128, 64, 32)},
}
SHA256 = {
    "u2pl/pascal/92/labeled.txt": "7feeb5314d99485739e79c385d3b70145d44dc60190acb4d5df63165c630ef6a",
    "u2pl/pascal/92/unlabeled.txt": "9ae9c7726c7e06f8ef40cddfea55911128157c5a21c3c5195074e4e45e48031f",
    "u2pl/pascal/183/labeled.txt": "5dac0b72efebf63344c90c3700537e6d667c80bfa4c17205d96d459e655ec976",
    "u2pl/pascal/183/unlabeled.txt": "4a3f4c77c01bae73b342439dbb3eb9f09b102e5ca5680fcfd941785bafd0cc98",
    "u2pl/pascal/366/labeled.txt": "97abd8fe7d52346b2663e6faed73e89560a171788ea0a12c012bff26c74a25d4",
    "u2pl/pascal/366/unlabeled.txt": "2cb6fe3645fa20e66653209b003e9d8b059e18bc664341515ea352eac2ef273c",
    "u2pl/pascal/732/labeled.txt": "b2973f8d47b780e0bc53f598a51fb651c21c7485f4d02111296452abb931ce44",
    "u2pl/pascal/732/unlabeled.txt": "077f8aab596629403bb38177c3c678a17a30eb7132a38f4952237763b311a170",
    "u2pl/pascal/1464/labeled.txt": "129f1fe991729b1862115b77738c938c149c1f167baa02b4b3186aea9f0d6a84",
    "u2pl/pascal/1464/unlabeled.txt": "ba34ae09804b56761fbb46667ed6eb962a498205c068521b1105a0944f08ac40",
    "cps/pascal/92/labeled.txt": "8a02aa6a1253178b105bd25b36f0a27daeedf6b3959f399aa47d24783f3a8306",
    "cps/pascal/92/unlabeled.txt": "a3eb5ef8d2ae547f131bfa60b8111d21700d458b545741336633d5aa209254d5",
    "cps/pascal/183/labeled.txt": "de3f4680391cb15324402dae17ac0919933d0d9004c11a641c924f3f67147f9f",
    "cps/pascal/183/unlabeled.txt": "39aa3fd2997799c57c7d68d1ab342e2ebf53224ab10c1766a9fcd1554afbfd6a",
    "cps/pascal/366/labeled.txt": "74f6bd1e459a8b46fc204529d70b603769f8a45aef4553df8a5c04b5698e77b7",
    "cps/pascal/366/unlabeled.txt": "591c593546d1dbb65bd4d08ae99fabc1e9958d614c8079c8961422b8b7df7433",
    "cps/pascal/732/labeled.txt": "02c8ec5b62e27364f5bc91eb95bccf54debaa721e9d31c50c07507aea258fd0f",
    "cps/pascal/732/unlabeled.txt": "8ddf828ec616b551447dc402c2c53eb7d0044697a0b6bacd6190ee843ffbf340",
    "cps/pascal/1464/labeled.txt": "b20486876df309c57c8230e957b2957fff5392ff5cb11f225e8453ed6c50ba3e",
    "cps/pascal/1464/unlabeled.txt": "3ba331d08fee0751486a8be3f9f269f9efc09faa82a32a703bbb7deda4d66544",
    "u2pl/pascal/662/labeled.txt": "e9bb5d18af8041799389ad0c2274f043161a912837416c2c6403d9d901dee4c1",
    "u2pl/pascal/662/unlabeled.txt": "a9a7e39271779ccaacced31633d32d55a0dc27f61a451ac5e3a7a1403cdfb5af",
    "u2pl/pascal/1323/labeled.txt": "112dcea11e1a1d211e03db87c743989ffb29c16f90ce30da7c118b3c28f8d697",
    "u2pl/pascal/1323/unlabeled.txt": "669ca8dc16acaf33a9db723d40e914f93d8d4ab5edab121148fbf30861128694",
    "u2pl/pascal/2646/labeled.txt": "4cc769f75d69c74e4eabdb1dff7cb93ac22a4c30a9b759a7cedec3e3c6b7ed28",
    "u2pl/pascal/2646/unlabeled.txt": "4fd8e0bc7304c99ac884c6876a8f5d23ce6d9468fa55601334982ad4fa631f4f",
    "u2pl/pascal/5291/labeled.txt": "989051b20c885ee09c37b5e5d005c067a6cd1bbcf40b06df6eb4af9e41992296",
    "u2pl/pascal/5291/unlabeled.txt": "7594c243192ee8decac87d733eb977fea16ede88f9b0cf7759c73251e7f0a82c",
    "cps/pascal/1_16/labeled.txt": "0f5e114e6504c8afec6523db91f05503f120d1365cf505e6f4ef99f316d5873b",
    "cps/pascal/1_16/unlabeled.txt": "29b30bf7adb5d39e642c57e3a3f4f26f9d4fb8f145098c430a597ef99160e36f",
    "cps/pascal/1_8/labeled.txt": "c5ea9bb095158a137e4c1db739b07d54a89af697de24ffd9e576493a4189653f",
    "cps/pascal/1_8/unlabeled.txt": "5246f6e0bec70363a5b898e0d685d37b0afcfab4a71c010e7026555294d9eca9",
    "cps/pascal/1_4/labeled.txt": "a4573ca0fa8f97c4013dba5f8b233e77a1a8dc7877539b1eb18c8206d37227d0",
    "cps/pascal/1_4/unlabeled.txt": "832ccd3a7971b1ed79e77f606a6736fa58d85f88aaf2eb88c856b27af74c847b",
    "u2pl/pascal/5291_cps/labeled.txt": "192132b4f645339dd143850359d4e27bb62ba3ce447553a07de23fbff4f0c8b9",
    "u2pl/pascal/5291_cps/unlabeled.txt": "415761b09b2b58696eadbe27d4cf09e42c495d247723d2a3267a7537fa410107",
    "u2pl/cityscapes/186/labeled.txt": "b325a363ec870628cbf3265bf48f9d9bf3e6e87a6e5c004ca989cda6279a0fd4",
    "u2pl/cityscapes/186/unlabeled.txt": "0adcdcf9cf5db4276dfcdba1c207b2e5439ee465102d923eff3eec61573c5393",
    "u2pl/cityscapes/372/labeled.txt": "a7fa9c926a15c3983a6b2b884dc455bcfaf59ddc2cbe63f895e1d067d5a7f9b4",
    "u2pl/cityscapes/372/unlabeled.txt": "de6eeec7ec6d43403138d840e91e671af0033dc09a09cbcd14a7b872963b034f",
    "u2pl/cityscapes/744/labeled.txt": "489d49d7dde31150a862dbd0aabfa8e787b9278ee51978d7d3d2c8e67d666c66",
    "u2pl/cityscapes/744/unlabeled.txt": "e7b30bf5cee9103f546818e61fd8e26eb63c3a763fdd2a45343744bb6d96618a",
    "u2pl/cityscapes/1488/labeled.txt": "1c345bd7ed630b201bc3c3cde2604dce0d65df35c142bbf35ffea8a699485488",
    "u2pl/cityscapes/1488/unlabeled.txt": "be9e936decc74da8575cd57974e3b0ed4a669317873a5748125330b7d10409dc",
    "cps/cityscapes/1_30/labeled.txt": "b11041fef70476fb5564af0ef006a8013622da9cf49c7faf4182f3e26eb32742",
    "cps/cityscapes/1_30/unlabeled.txt": "1b8a9b7bb4f9f6f06a3dffe766efe8b10a14a0137637af1738bbb417a5c85dbe",
    "cps/cityscapes/1_16/labeled.txt": "64195914dce1231133c7dc611fece213bc3a87fe4e0b73fbd96add7dfa8a2f46",
    "cps/cityscapes/1_16/unlabeled.txt": "7f18e2aefb5e88598910e291a935117daaeef51c6828edeb62f8a6c882be0a79",
    "cps/cityscapes/1_8/labeled.txt": "97291dfc509a8c90ee94e1c5fd1f7668c21205b995f53b963ac133f0ed96ee8e",
    "cps/cityscapes/1_8/unlabeled.txt": "5d7d33e39a8bda908e12d7f33ecb3299f93a8596fbe3c5e0cc1f2d3f5d358459",
    "cps/cityscapes/1_4/labeled.txt": "8edd24ae817eed7b49d0a06c95b7bfaf769002c98387e4edeab5e221ab7791c3",
    "cps/cityscapes/1_4/unlabeled.txt": "6fc53258ed2e40f72f4a22b6e20d60a789168fdf6b860033f826e8bee3900e9b",
    "cps/cityscapes/1_2/labeled.txt": "90d8e29d4d182c3b3def3d1fac02e454868c4ca632f73696bb521aa05e937ee4",
    "cps/cityscapes/1_2/unlabeled.txt": "23d0efaa43a65608b25eb078ed058c53979957e44407d787e3abdda9a795d289",
    "unimatch_v2/ade20k/1_64/labeled.txt": "78f423b10adcb3670e048c02bf43707430ede157036c195b61912dc4bf25602a",
    "unimatch_v2/ade20k/1_32/labeled.txt": "b5f4e344f278d04dc4b0f3a1ebb349844d5ad8cbab61922275d43211ef1526ad",
    "unimatch_v2/ade20k/1_16/labeled.txt": "a716e48c18e404ad00258e111290d09c59fd90b6b564283a1e86741a083dda82",
    "unimatch_v2/ade20k/1_8/labeled.txt": "311d88abc340a887a4e1f87b49e87ba8b4d050cb2ee3a2dfcc01158c2d29f7f0",
    "unimatch_v2/ade20k/1_4/labeled.txt": "e657087c6b05ecc7a264820212c21918e280c51b060b831d5bc138114099b1b5",
    "unimatch_v2/ade20k/1_2/labeled.txt": "cf34f0bd73d0f9980a9517cb872dcd66b4ad3901d2f2b4a6e10db715c7f44a45",
    "unimatch_v2/coco/1_512/labeled.txt": "bd0ff85bf2d35b4641d08c2201257ad5b5f02f85ea0da457f44f0b97c4caeb37",
    "unimatch_v2/coco/1_256/labeled.txt": "4cdf41b9d3b3afc3734057a605015860501199ed3680370ccb2c677fc159b127",
    "unimatch_v2/coco/1_128/labeled.txt": "06067c0fb879b8e6ab8f4bdab3dfa641e8e4da2990200fa156daa33670329d79",
    "unimatch_v2/coco/1_64/labeled.txt": "622b84ccbb5dcba32f4f5bb4ffaf1a9cf3e3f1f460b55dc02605fd099ebf1337",
    "unimatch_v2/coco/1_32/labeled.txt": "781b5990914f7422ee9e1f6325a914f289e077621b77b9cd066c2d01d33a939e",
}


def fetch(name: str, family: str, count: int, folder: Path | str | None, *, timeout: float = 20) -> Path | None:
    """Return the path of a published `labeled.txt`, or None if no list of this count was published.

    It is downloaded if it is missing, and so is the `unlabeled.txt` beside it, if one was published.

    Args:
        name: name of the data set.
        family: u2pl, cps or unimatch_v2.
        count: number of labeled images.
        folder: where lists are kept, under the paths of `PUBLISHED`.
        timeout: seconds of silence after which a server is given up.

    Raises:
        ValueError: a list cannot be downloaded, or a file has another checksum than the published one.
    """
    place = PUBLISHED.get((name, family), {}).get(count)
    if place is None:
        return None
    if folder is None:
        raise ValueError(f"{name}: no folder for the {family} list of {count} images; set lists, or family=drawn")
    parts = [f"{place}/{part}.txt" for part in ("labeled", "unlabeled")]
    labeled, *_ = [_fetch_file(part, Path(folder), timeout) for part in parts if part in SHA256]
    return labeled


def fetch_all(name: str, folder: Path | str, *, timeout: float = 20) -> int:
    """Fetch all published lists of a data set, of each family; return how many there are. Raises as `fetch` does."""
    lists = [(family, count) for (owner, family), counts in PUBLISHED.items() if owner == name for count in counts]
    for family, count in lists:
        fetch(name, family, count, folder, timeout=timeout)
    return len(lists)


def address(file: str) -> str:
    """Return the address of a file in `SHA256`: in its repository, or in the mirror if one is set."""
    family, _, path = file.partition("/")
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{file}" if mirror else f"{REPOSITORIES[family]}/{path}"


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete, even if processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_png(mask: np.ndarray) -> bytes:
    """Return class ids (H, W) as the content of a PNG with one 8-bit channel."""
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


def quiet() -> bool:
    """Whether to show no progress bars, because the output goes to a file."""
    return not (get_console().is_terminal and sys.stderr.isatty())


def one_line(error: Exception) -> str:
    """Describe in one line why a download failed; an HTTP error's connection is closed as well."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    return " ".join(str(error).removeprefix("<urlopen error ").removesuffix(">").rstrip(".").split())


def _fetch_file(file: str, folder: Path, timeout: float) -> Path:
    path, expected = folder / file, SHA256[file]
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(
                f"{path}: SHA-256 is {found} instead of {expected}, so it is not the published list; remove it, and it"
                f" is downloaded from {address(file)}, or put the right file there by hand"
            )
        return path
    try:
        content = _read(file, timeout)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ValueError(f"what came has SHA-256 {found}, so it is not the published list")
        write_file(path, content)
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: also a mirror without https://
        raise ValueError(
            f"{address(file)}: {one_line(error)}; download it by hand to {path} (SHA-256 {expected}), or name a mirror"
            f" in {MIRROR}, or draw a split of your own with split_family=drawn"
        ) from None
    return path


def _read(file: str, timeout: float) -> bytes:
    quiet = not get_console().is_terminal
    with urllib.request.urlopen(address(file), timeout=timeout) as response:
        length = int(response.headers.get("Content-Length", 0))
        with wrap_file(response, length, description=file, transient=True, disable=quiet) as stream:
            content = b""
        while len(content) <= LARGEST and (chunk := stream.read(1 << 16)):
            content += chunk
    if len(content) > LARGEST:
        raise ValueError("what came is larger than any list")
    if len(content) < length:
        raise ConnectionError(f"the connection ended after {len(content)} of {length} bytes")
    return content
