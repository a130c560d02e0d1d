"""The diagnosis of an installation: what is wrong, by which evidence, and what to do about it.

Called by `korrigo doctor`. `patient` gives the facts, whatever part is down; one module per scenario of the playbooks
holds the causes that belong to it; `registry` knows all of them and ranks what it finds; `health` is the check of the
machine and the product as a whole. Looks only: nothing here changes anything.
"""
