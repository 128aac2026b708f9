"""`find-dest`: sites are visited, and ranked by what an observer would see of a server before them."""
