"""What dies with pre-training: teachers, decoders and objectives, one file per method."""
