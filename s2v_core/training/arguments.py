"""The options of the words `train` and `precompute`.

Knows words alone: who asks for help does not wait for torch.
"""

from __future__ import annotations

import argparse


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument(
        "--stage", action="append", metavar="FILE.yaml",
        help="a further stage, which starts from the weights of the one before it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what each stage would cost, and stop")
    parser.add_argument(
        "--gpus", type=int, metavar="N",
        help="for --dry-run: find a layout for so many (default: what the settings say, or one for 8)",
    )  # fmt: skip
    parser.add_argument("--gpu-memory", type=float, default=80.0, metavar="GB", help="for --dry-run (default: 80)")
    parser.add_argument("--export", action="store_true", help="only write the newest checkpoint's weights")


def add_precompute_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument("--validation", action="store_true", help="write the windows of precompute_validation")


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the run's settings")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
