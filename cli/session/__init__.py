"""Commands about a session in memory: plans, captures, and the fields of `install-session`."""
