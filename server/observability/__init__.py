"""The request record, and the logs, metrics and spans made from it."""
