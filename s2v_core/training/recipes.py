"""What the recipes of the small encoders share: the command that runs one, its settings in YAML, a log of JSON lines.

Knows arguments and files; not what is fitted, nor how.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import yaml

log = logging.getLogger(__name__)

Recipe = TypeVar("Recipe")
Tell = Callable[[dict[str, object]], None]
"""Logs what was measured and adds it to the log file, a line of JSON."""


def recipe_parser(description: str, writes: str) -> argparse.ArgumentParser:
    """The options of every recipe. `writes` says what comes to lie in the folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="the recipe, a YAML file")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {writes}")
    parser.add_argument("--log", type=Path, help="file for one JSON line a report; default: beside the config")
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    return parser


@contextmanager
def recipe_run(kind: type[Recipe], options: argparse.Namespace) -> Iterator[tuple[Recipe, Tell]]:
    """The recipe that `recipe_parser`'s options name, and who is told how it goes; told already: the recipe."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = kind(**yaml.safe_load(options.config.read_text(encoding="utf-8")))
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    path = options.log or options.config.with_suffix(".log.jsonl")
    with path.open("w", encoding="utf-8") as file:

        def tell(line: dict[str, object]) -> None:
            text = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
            log.info(text)
            file.write(text + "\n")
            file.flush()

        tell({"recipe": asdict(recipe)})
        yield recipe, tell
