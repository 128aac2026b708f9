"""Coming back to a server as a browser does: tickets, the hello that uses one, the answer to it (RFC 8446 §2.2)."""
