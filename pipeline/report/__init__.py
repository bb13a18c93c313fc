"""The report: its tables, figures and page, and the summary in the terminal."""
