"""A real ComfyUI on this machine's CPU with the pack in it, and a client for it.

Knows the host's command line and HTTP interface.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
RUN_SECONDS = 600


def find_host() -> tuple[Path | None, str]:
    """ComfyUI's folder, or None and why there is none."""
    told = os.environ.get("COMFYUI_DIR")
    if told:
        folder = Path(told)
        return (folder, "") if (folder / "main.py").is_file() else (None, f"COMFYUI_DIR={told} has no main.py")
    if ROOT.parent.name == "custom_nodes" and (ROOT.parents[1] / "main.py").is_file():
        return ROOT.parents[1], ""
    return None, "no ComfyUI: set COMFYUI_DIR to its folder"


class Server:
    """A server with its own input, output and models folders; use it in a `with`.

    Args:
        comfy: ComfyUI's folder; COMFYUI_PYTHON names its Python, if it is not this one.
        base: an empty folder for everything that is written.
        with_pack: False starts it bare.
    """

    def __init__(self, comfy: Path, base: Path, *, with_pack: bool = True) -> None:
        self.base = base
        for name in ("custom_nodes", "input", "output", "temp", "models/diffusion_models", "models/loras"):
            (base / name).mkdir(parents=True, exist_ok=True)
        if with_pack and not (base / "custom_nodes" / "wan_s2v").exists():
            (base / "custom_nodes" / "wan_s2v").symlink_to(ROOT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.comfy = comfy
        self.seconds_to_start = 0.0

    def __enter__(self) -> Server:
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [
            python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--preview-method", "auto",
            "--disable-api-nodes",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        self._log = (self.base / "log.txt").open("ab")
        began = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=self.comfy, env=environment, stdout=self._log, stderr=subprocess.STDOUT
        )
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        self.seconds_to_start = time.monotonic() - began
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def kill(self) -> None:
        """As a crash would."""
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        return (self.base / "log.txt").read_text(errors="replace")

    # ---- HTTP ---------------------------------------------------------------------------------------------------

    def text(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode("utf-8")

    def get(self, path: str) -> object:
        return json.loads(self.text(path))

    def post(self, path: str, content: object) -> object:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            return json.loads(error.read())
        return json.loads(text) if text else None

    def submit(self, prompt: dict) -> str:
        answer = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)
        return answer["prompt_id"]

    def wait(self, prompt_id: str) -> dict:
        """The finished run's history entry."""
        began = time.monotonic()
        while time.monotonic() - began < RUN_SECONDS:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"the run did not end in {RUN_SECONDS} s:\n{self.log()[-3000:]}")

    def run(self, prompt: dict) -> dict:
        """Run to the end; an error in it is ours."""
        entry = self.wait(self.submit(prompt))
        assert entry["status"]["status_str"] == "success", self.failure(entry)
        return entry

    @staticmethod
    def failure(entry: dict) -> str:
        """What stands in the node's red box."""
        messages = dict(entry["status"]["messages"])
        return messages.get("execution_error", {}).get("exception_message", json.dumps(entry["status"]))

    @staticmethod
    def computed(entry: dict) -> set[str]:
        """Ids of the nodes that were not taken from the cache."""
        messages = dict(entry["status"]["messages"])
        cached = set(messages.get("execution_cached", {}).get("nodes", []))
        return set(entry["prompt"][2]) - cached

    def files(self, entry: dict) -> list[Path]:
        """What output nodes have saved."""
        found = []
        for output in entry["outputs"].values():
            for images in output.values():
                found += [
                    self.base / image["type"] / image["subfolder"] / image["filename"]
                    for image in images
                    if isinstance(image, dict) and "filename" in image
                ]
        return found

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True
