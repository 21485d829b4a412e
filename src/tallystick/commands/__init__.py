"""The commands by group: options and settings in, what came of it out."""
