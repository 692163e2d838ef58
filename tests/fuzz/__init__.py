"""Whatever others hand to us, thrown at us: no exception but our documented errors, nothing of theirs in our name.

Examples are derived from the test itself (`derandomize`), so a failure fails again; hypothesis prints it with the seed
that reproduces it. All of them together take less than two and a half minutes.
"""
