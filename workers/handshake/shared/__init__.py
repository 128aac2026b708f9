"""One port for several daemons: what the front and those that joined it say to each other, and both sides of it."""
