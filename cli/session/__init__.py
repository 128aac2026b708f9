"""Commands about a session in memory: plans, captures, and the fields of a session by hand."""
