"""The benchmark, `cdropout bench`: `command` runs it, `race` times, `peers` says who takes part."""
