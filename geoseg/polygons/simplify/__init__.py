"""An arc, once it is whole → the arc that both of its neighbours use."""
