"""params.yaml as records: read, checked, explained, and merged into the settings that are in force."""
