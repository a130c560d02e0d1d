"""Drills: every cause that the playbooks know is injected for real, seen by a real Prometheus, named, healed.

    scratch      an instance of its own, thrown away at the end
    rules        the shipped rules in fast motion: every duration divided by 20
    watch        Prometheus, Alertmanager and a receiver of what they send
    desk         what people do, over HTTP
    drill        what a drill is; each file of causes holds a family of them
    engine       runs them, as many at once as do not disturb each other, and gives the verdicts

Started by `korrigo drill` (`make drill`) and by tests/drills, which joins `make test` once all drills pass there. What
is expected of each cause is declared before the run, in its class; nothing is adjusted afterwards.
"""
