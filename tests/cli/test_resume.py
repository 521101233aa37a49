"""A run that is killed over and over ends with the video of a run that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from .media import picture, tone

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")

# Runs in a process of its own, which imports everything once and forks a child per attempt. The child says in a
# shared byte what it is doing; the parent kills it there, after a random while.
DRIVER = '''
import mmap, os, random, signal, sys, time, json
from s2v_core import pipeline
from s2v_core.video import fill
from s2v_core.cli import main
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.vae import DecoderStream

SAMPLING, DECODING, WRITING, JOINING = 1, 2, 3, 4
NAMES = {SAMPLING: "sampling", DECODING: "decoding", WRITING: "writing", JOINING: "joining"}
stage = mmap.mmap(-1, 1)
kills = int(sys.argv[1])
argv = sys.argv[2:]
rng = random.Random(0)

def marked(owner, name, number):
    plain = getattr(owner, name)
    def wrapper(*args, **kwargs):
        stage[0] = number
        return plain(*args, **kwargs)
    setattr(owner, name, wrapper)

marked(WanS2VTransformer, "branches", SAMPLING)
marked(DecoderStream, "decode", DECODING)
marked(fill, "write_segment", WRITING)
marked(pipeline, "join_segments", JOINING)

def attempt(target):
    stage[0] = 0
    child = os.fork()
    if child == 0:
        os._exit(main(argv))
    seen = 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None, os.waitstatus_to_exitcode(status)
        if target is not None and stage[0] == target:
            seen += 1
            if seen > 1 or target != SAMPLING:
                time.sleep(rng.uniform(0, 0.4 if target == DECODING else 0.05))
                struck = stage[0]
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return NAMES.get(struck, "between"), -9
        time.sleep(0.002)

struck = []
order = [SAMPLING, DECODING, WRITING] * (kills // 3) + [JOINING] * (kills - 3 * (kills // 3))
for target in order:
    where, code = attempt(target)
    struck.append([NAMES[target], where, code])
_, code = attempt(None)
print(json.dumps({"struck": struck, "code": code}))
'''


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def drive(kills: int, folder: Path, *options: str) -> dict:
    words = [
        "generate", "--image", str(folder / "face.png"), "--audio", str(folder / "speech.wav"), "--size", "64x64",
        "--steps", "2", "--quiet", *options,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(kills), *words],
        capture_output=True, text=True, timeout=500, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("continuity", ["exact", "carry"])
def test_a_run_killed_again_and_again_ends_with_the_same_video(tmp_path: Path, continuity: str) -> None:
    picture(tmp_path / "face.png", 80, 64)
    tone(tmp_path / "speech.wav", seconds=17.0)   # four clips
    kills = 13 if continuity == "exact" else 7
    whole = drive(0, tmp_path, "--continuity", continuity, "-o", str(tmp_path / "whole.mp4"))
    killed = drive(kills, tmp_path, "--continuity", continuity, "-o", str(tmp_path / "killed.mp4"))
    assert (whole["code"], killed["code"]) == (0, 0)
    died = [where for _, where, code in killed["struck"] if code == -9]
    assert len(died) >= kills - 3, killed
    assert {"sampling", "decoding", "writing"} <= set(died), killed
    assert np.array_equal(frames_of(tmp_path / "whole.mp4"), frames_of(tmp_path / "killed.mp4"))
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "killed.mp4").read_bytes()
