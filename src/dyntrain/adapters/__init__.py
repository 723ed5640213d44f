"""Other people's networks as potentials: each file wraps the unmodified modules of one package.

They are reached by name through the entry points of the group ``dyntrain.models`` (see
``dyntrain.models.files``), never imported by the rest of dyntrain, so that a package is needed only by those
who use it.
"""
