"""Client handshakes on a real socket: to Dest, like a browser, or to a server. Nothing here outlives a visit."""
