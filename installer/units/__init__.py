"""systemd as we use it: unit syntax and rendering, its answers, the journal, keys in a unit, who listens for it."""
