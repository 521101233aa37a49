"""The README's options, job files and commands are the command's own."""

from __future__ import annotations

import re
import shlex

from s2v_core.cli import build_parser
from s2v_core.jobs import read_batch, read_config
from s2v_core.options import AREAS, ATTENTIONS, OFFLOADS, OPTIONS
from s2v_core.types import CONTINUITIES, SOLVERS

from .paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def options_table() -> str:
    return README.split("## Options")[1].split("Exit codes:")[0]


def test_the_table_names_every_option_and_no_other():
    assert set(re.findall(r"`--([a-z-]+)`", options_table())) == {*OPTIONS, "config"}


def test_the_table_names_every_choice():
    named = set(re.findall(r"`([^`]+)`", options_table()))
    wanted = {*SOLVERS, *CONTINUITIES, *AREAS, *OFFLOADS, *ATTENTIONS}
    assert wanted - named == set()


def test_the_commands_are_understood():
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if "wan-s2v " in line]
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command)
        _, strangers = build_parser().parse_known_args(words[1:])
        assert strangers == [], command


def test_the_job_files_are_read(tmp_path):
    (tmp_path / "settings.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "jobs.jsonl").write_text(blocks("jsonl")[0])
    values = read_config(tmp_path / "settings.yaml")
    jobs = read_batch(tmp_path / "jobs.jsonl", values)
    assert [job.request.steps for job in jobs] == [30, 30]
    assert [job.request.max_area for job in jobs] == [AREAS["480p"], AREAS["720p"]]


def test_each_marked_command_stands_once():
    assert re.findall(r"^<!-- ci: (\w+) -->\n```sh\n", README, re.MULTILINE) == ["video", "tests"]
