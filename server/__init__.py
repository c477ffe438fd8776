"""The HTTP process: the wire contract over an engine it knows only through `engine.client`."""

VERSION = "0.1.0"
