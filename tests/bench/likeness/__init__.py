"""A judge: can connections of QRE be told from visits to the site, by what a censor sees? It prints, and asserts
nothing about the answer."""
