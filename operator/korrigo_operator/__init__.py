"""The operator of Korrigo: shows trouble as objects of Kubernetes, and heals it within limits.

The truth stays in the rooms' databases. Rooms tell over gRPC what is stuck, `policies` decide what to do about it, the
rooms do it, and objects tell people. The policies need nothing of Kubernetes: `korrigo up` heals by the same ones.
"""
