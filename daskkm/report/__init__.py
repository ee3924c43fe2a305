"""Files and pictures of a sweep for people."""
