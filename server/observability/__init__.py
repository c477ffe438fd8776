"""The request record and what is reported of it: logs, metrics, spans."""
