"""The worker that looks up one name with the C library's resolver, and ends. Nothing of a tunnel is here."""
