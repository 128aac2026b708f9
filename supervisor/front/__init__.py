"""One UDP port for several daemons: finding its front, joining it, and letting others join."""
