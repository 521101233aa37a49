"""Small tensor operations that several models share."""
