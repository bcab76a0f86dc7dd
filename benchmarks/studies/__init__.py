"""Studies: scripts that write a table and the numbers behind it."""
