"""QRE's Debian packages: built, judged, and installed on minimal machines."""
