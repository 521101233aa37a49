"""What directs a video, made ready for the model: sound, picture, text."""
