"""The comparison as one HTML file that needs no network, no other files and no server."""
