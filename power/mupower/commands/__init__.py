"""The commands of ``mupower``: each parses its options and delegates."""
