"""The ring container: the unit under a real systemd, in containers."""
