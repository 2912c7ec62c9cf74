"""PerA as mathematics: backbone, heads, losses and how they go together. No files, no clock, no ranks."""
