"""Clips to a video of any length: the plan, the memory between clips, the loop, and the take on disk."""
