"""A client handshake on a real socket: to Dest, as a browser would, or to a server. Nothing here outlives a visit."""
