"""S2V Pose From Footage: a clip of a person becomes a video of drawn poses.

Knows widgets; the work is in `footage.py`.
"""

from __future__ import annotations

from . import host
from .host import io
from .sockets import CATEGORY


class PoseFromFootage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VPoseFromFootage",
            display_name="S2V Pose From Footage",
            category=CATEGORY,
            description="A clip of a person becomes a video of drawn poses (body, hands and face), for the pose_video "
                        "input of S2V Long Video. Needs the package mediapipe.",
            search_aliases=["dwpose", "openpose", "skeleton", "pose estimation", "mediapipe"],
            inputs=[
                io.Video.Input("video", tooltip="Footage of one person, at any size and frame rate."),
                io.Float.Input("fps", default=16.0, min=1.0, max=120.0, step=1.0, round=0.001,
                               tooltip="Poses that are drawn per second, 1 to 120: as many as the video has that "
                                       "follows them. Each takes about a third of a second of work."),
            ],
            outputs=[
                io.Video.Output("pose_video", display_name="pose_video",
                                tooltip="As long as the footage, for S2V Long Video, or Save Video."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(cls, video: object, fps: float) -> io.NodeOutput:
        from .footage import drawn_video

        return io.NodeOutput(host.video_file(drawn_video(video, fps, node_id=cls.hidden.unique_id)))
