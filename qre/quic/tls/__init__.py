"""TLS messages of a server, and of the hello that it reads."""
