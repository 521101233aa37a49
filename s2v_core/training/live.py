"""Windows that are encoded when they are first needed, and kept: what `precompute` writes, one video at a time.

Knows footage, encoders and the folder of windows; not which window is needed when, nor by whom.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import TransformerConfig
from ..errors import CheckpointError, ConfigError, OutputError
from .config import PrecomputeConfig
from .footage import Footage, FootageItem
from .precompute import Cut, Encoders, encode_video, fault_of, video_cuts, window_path
from .windows import CONTINUING, Window, WindowEntry, load_window

log = logging.getLogger(__name__)


class LiveWindows:
    """The windows of videos: known from the start, encoded one video at a time when one of them is asked for.

    Each video is opened once at the start, to see what its windows will be, and again when they are encoded. What was
    encoded once, by this run, an earlier one or `precompute`, is read from then on. A video that cannot be used is
    logged and left out.

    Args:
        reader: the transformer that the encoders' model has; its sizes are the windows'.

    Raises: ConfigError when not one video can be opened.
    """

    def __init__(
        self, items: list[FootageItem], encoders: Encoders, config: PrecomputeConfig, *, reader: TransformerConfig
    ) -> None:
        self._items, self._encoders, self._config = items, encoders, config
        self._identity = encoders.identity()
        self._video_of: dict[Path, int] = {}
        self._encoded: set[int] = set()
        self._faults: dict[int, str] = {}   # of videos that turned out to be broken
        self.entries: list[WindowEntry] = []
        self.num_skipped = 0
        for index, item in enumerate(items):
            try:
                entries = list(self._planned(index, item, reader))
            except Exception as error:   # whatever a broken video's decoder raises
                log.warning("left out: %s", fault_of(item.name, error))
                self.num_skipped += config.windows_per_video
                continue
            self.entries += entries
            self._video_of |= {entry.path: index for entry in entries}
            if (index + 1) % 50 == 0:
                log.info("%d of %d videos seen", index + 1, len(items))
        if not self.entries:
            raise ConfigError(f"not one of {len(items)} videos could be used; what is wrong with each is said above")

    def load(self, path: Path) -> Window:
        """Raises: CheckpointError for a window of a video that cannot be used; OutputError when the disk is full."""
        index = self._video_of[path]
        if index not in self._encoded and index not in self._faults:
            self._encode(index)
        if index in self._faults:
            raise CheckpointError(self._faults[index])
        return load_window(path)

    def _encode(self, index: int) -> None:
        item = self._items[index]
        try:
            encode_video(index, item, self._encoders, self._identity, self._config)
            self._encoded.add(index)
        except (OutputError, MemoryError, torch.OutOfMemoryError):   # not the video's fault
            raise
        except Exception as error:
            self._faults[index] = fault_of(item.name, error)

    def _planned(self, index: int, item: FootageItem, reader: TransformerConfig) -> Iterator[WindowEntry]:
        footage = item.open()
        for number, cut in enumerate(video_cuts(index, item.name, footage.num_frames, self._config)):
            shapes = window_shapes(footage, cut, self._config, reader)
            path = window_path(index, number, self._config)
            yield WindowEntry(path=path, fingerprint=None, model=self._identity, shapes=shapes)


def window_shapes(
    footage: Footage, cut: Cut, config: PrecomputeConfig, reader: TransformerConfig
) -> dict[str, tuple[int, ...]]:
    """What the tensors of a window will be, by their names in order; a prompt is as long as the model reads."""
    grid = footage.size.latent_grid(config.num_latents)
    channels, cells = reader.in_channels, (grid.height, grid.width)
    features = (reader.num_audio_layers, reader.audio_dim, config.clip_frames)
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (channels, grid.frames, *cells),
        "reference_latent": (channels, 1, *cells),
        "audio_features": features,
    }
    if config.prompts == "encoded":
        shapes["prompt_embeds"] = (reader.text_len, reader.text_dim)
    if cut.kind == CONTINUING:
        shapes["motion_latents"] = (channels, config.num_motion_latents, *cells)
    if footage.pose is not None:
        shapes["pose_latents"] = shapes["latents"]
    for name, boxes in (("face_mask", footage.face_boxes), ("mouth_mask", footage.mouth_boxes)):
        if boxes is not None:
            shapes[name] = (grid.frames, *cells)
    if footage.speakers:
        shapes["speaker_features"] = (len(footage.speakers), *features)
        shapes["speaker_masks"] = (len(footage.speakers), grid.frames, *cells)
    return dict(sorted(shapes.items()))
