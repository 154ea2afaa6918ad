"""`m2f demo`: a page in the browser to try a server with pictures."""
