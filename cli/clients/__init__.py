"""Clients by name: added, listed, renamed, removed at the server; handed out and imported as a file, link or code."""
