"""Pictures and files that a sweep leaves for people."""
