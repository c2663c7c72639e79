"""Maps: a classifier in, named and coloured GeoTIFFs out. Open ``stage`` first.

``read`` shows what was written, ``browser`` lets runs and scenes be compared by hand.
"""
