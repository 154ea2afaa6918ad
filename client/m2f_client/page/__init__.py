"""`m2f demo`: a page in the browser for trying a server with images."""
