"""Sound, pictures and video, in and out of files."""
