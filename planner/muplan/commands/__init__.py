"""The commands of ``muplan``: each parses its options and delegates."""
