"""Commands about one shared port: its loader, both ends of a handshake, and the leftovers of a killed loader."""
