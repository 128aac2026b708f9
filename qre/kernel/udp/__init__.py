"""UDP sockets of either IP version: how they are made, and the control messages of their datagrams."""
