"""The comparison as one HTML file that needs nothing beside itself: no network, no folder, no server."""
