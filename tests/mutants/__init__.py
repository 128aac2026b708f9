"""Does a test notice? Small changes of the sources, one for each clause of docs/conformance.md, and what kills them."""
