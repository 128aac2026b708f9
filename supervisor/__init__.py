"""Process life cycle, sockets, routing of messages, readiness."""
