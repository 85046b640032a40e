"""The power daemon: reads Triton's metrics and keeps every GPU at the lowest clock its SLOs allow."""
