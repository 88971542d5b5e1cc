"""The engine behind `geoseg.programs.predict`: a scene in tasks that any process can do, resumed and byte-equal."""
