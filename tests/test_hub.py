"""Weights alone, and a hub: a checkpoint is pushed to a small server that speaks its endpoints, and pulled from it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from conftest import composed

from pcr_seg.checkpoint import load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.commands.export import export
from pcr_seg.training.checkpoints import newest_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"


class Hub(BaseHTTPRequestHandler):
    """The endpoints of a hub that pushing a folder and pulling a file ask for; files are kept by repository."""

    files: dict[str, bytes]
    created: list[dict]

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/validate-yaml":
            _, header, _ = json.loads(body)["content"].split("---\n", 2)
            assert yaml.safe_load(header)["pipeline_tag"] == "image-segmentation"
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            self.answer({"url": f"{self.address}/{asked.get('organization', 'me')}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        repo, _, file = self.path.lstrip("/").partition("/resolve/main/")
        if self.path.startswith("/api/models/"):
            self.answer({"id": self.path, "sha": COMMIT, "siblings": []})
        elif (content := self.files.get(f"{repo}/{file}")) is None:
            self.answer({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(content, headers={"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("Hub", (Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


PUSH_AND_PULL = """
import sys
sys.path[:0] = [sys.argv[1]]
from conftest import composed
from pcr_seg import load
from pcr_seg.commands.export import export
export(composed(f"checkpoint={sys.argv[2]}", "format=hub", "repo=ann/pits", name="export"))
for name in ("hf://ann/pits", "hf://ann/pits@main"):
    print(load(name).predict(sys.argv[3]).confidence.tobytes().hex()[:64])
try:
    load("hf://ann/nothing")
except FileNotFoundError as error:
    print(error)
"""


def test_a_checkpoint_is_pushed_to_a_hub_and_pulled_from_it(trained: Path, tmp_path: Path, hub) -> None:
    address, kept = hub
    checkpoint = trained / "checkpoints/last.ckpt"
    image = next((trained.parent / "data").rglob("val_00001.png"))
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", PUSH_AND_PULL, str(Path(__file__).parent), str(checkpoint), str(image)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *_, first, second, missing = result.stdout.splitlines()
    assert first == second == load(checkpoint).predict(image).confidence.tobytes().hex()[:64]
    assert missing.startswith("checkpoint=hf://ann/nothing: no model.ckpt on the hub (")
    assert set(kept.files) == {"ann/pits/model.ckpt", "ann/pits/README.md"}
    asked = kept.created[0]
    assert asked.get("visibility", asked.get("private")) in ("private", True), "as versions of the library spell it"
    card = kept.files["ann/pits/README.md"].decode()
    assert "checkpoint=hf://ann/pits" in card and 'load("hf://ann/pits")' in card and "../" not in card
    assert len(kept.files["ann/pits/model.ckpt"]) < checkpoint.stat().st_size / 2


def test_weights_alone_predict_as_the_run_does(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    file = export(composed(f"checkpoint={checkpoint}", "format=weights", f"output={tmp_path}/w.ckpt", name="export"))
    scores = [
        evaluate(composed(f"checkpoint={one}", f"output={tmp_path}/e.json", "device=cpu", name="eval"))
        for one in (checkpoint, file)
    ]
    assert scores[0] | {"checkpoint": ""} == scores[1] | {"checkpoint": ""}
    assert file.stat().st_size < checkpoint.stat().st_size / 2
    with pytest.raises(ValueError, match=r"w\.ckpt: holds the teacher alone; the student is in the run's last\.ckpt"):
        load(file, network="student")
    (tmp_path / "run").mkdir()
    file.rename(tmp_path / "run/last.ckpt")
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        newest_checkpoint(tmp_path / "run")
    student = export(composed(
        f"checkpoint={checkpoint}", "format=weights", "eval.student=true", f"output={tmp_path}/s.ckpt", name="export"
    ))  # fmt: skip
    state = torch.load(student, weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"student", "method"}


def test_what_cannot_be_pushed_is_one_line(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints/last.ckpt"
    for keys in (["format=hub"], ["format=onnx", "repo=ann/pits"]):
        with pytest.raises(ValueError, match="format=hub takes repo=USER/NAME, and no other format does"):
            export(composed(f"checkpoint={checkpoint}", *keys, name="export"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").symlink_to(checkpoint)
    alone = f"checkpoint={tmp_path}/checkpoints/last.ckpt"
    with pytest.raises(FileNotFoundError, match=r"summary\.json: no such file, of which the card is made"):
        export(composed(alone, "format=hub", "repo=ann/pits", name="export"))
