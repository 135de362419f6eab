"""A pickle that runs a command when it is loaded with trust."""

import os


class Malicious:
    """Makes the file ``path`` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))
