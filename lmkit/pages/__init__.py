"""HTML pages: the dashboard, and the page of scored tokens."""
