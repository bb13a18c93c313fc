"""DVC entry points: each reads its section of params.yaml, calls the library and writes files."""
