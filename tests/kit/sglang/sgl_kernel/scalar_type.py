class Named:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


scalar_types = Named()
ScalarType = str
