"""The commands of `ideoserve` beside serving: `generate`, `request` and `completion`."""
