"""The mathematics: pure arrays in, pure arrays out. No files, no command line, no printing."""
