"""More processes for the data plane: one process keeps the store and the folder of models, others answer predictions.

The *primary* accepts connections and gives each to the front end that has the fewest. A *front end* runs the same data
plane in a process of its own: it parses, batches and runs the models that the primary loaded, with heads that it reads
in the primary's memory, and hands every other request on to the primary.
"""
