"""One port for several daemons: the messages between the front and the daemons that joined it, and both sides."""
