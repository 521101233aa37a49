"""Weight files in: what a file is, which model it fits, and its tensors into that model.

Knows nothing of running the models.
"""
