"""Models: images in, token maps out. Open ``stage`` first: it trains the despeckling front end.

``encoders`` and ``fusion`` are put together in ``umsf_net``; ``speckle`` makes speckle, filters
it by classical filters and measures what is left.
"""
