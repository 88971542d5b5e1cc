"""The engine behind `geoseg.predict`: a scene in tasks that any process can do, resumed and byte-equal."""
