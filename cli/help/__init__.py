"""What the program says about itself: help, the manual page, examples. Loads nothing heavy."""
