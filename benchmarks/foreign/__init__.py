"""Small data files as other programs write them, and what the commands have to print about them."""
