"""The daemon's parent, which stays privileged: it prepares the machine, starts the supervisor, notifies
systemd, and cleans up. Nothing here parses what a peer can send.
"""
