"""The gateway of the test cluster: nginx, set up from the HTTPRoutes of the API server and from nothing else.

No controller of the Gateway API can be had here, so this reads what one would read: prefixes, Services and ports.
Called by `cluster.installation` after the chart is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from cluster.backing import MANIFESTS, NAMESPACE, objects
from cluster.kube import Json, Kube

_HEAD = """worker_processes 1;
daemon off;
pid /tmp/nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  # names are looked up as they are used: a Service may be made again under another address
  resolver RESOLVER valid=2s ipv6=off;
  # the product has limits of its own and tells them; a gateway must not answer for it
  client_max_body_size 0;
  proxy_http_version 1.1;
  proxy_request_buffering off;
  proxy_buffering off;
  proxy_connect_timeout 3s;
  proxy_read_timeout 600s;
  # whatever may have been applied is the client's to repeat
  proxy_next_upstream off;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
  proxy_set_header X-Forwarded-Proto $scheme;
  server {
    listen 8080;
"""


class UnknownRoute(AssertionError):
    """A route asks for something that this gateway does not do: it must learn it, not leave it out."""


def configuration(routes: list[Json]) -> str:
    """Return nginx's configuration for the routes; raises UnknownRoute."""
    targets = dict(target for route in routes for target in _targets(route))
    lines = [_HEAD]
    # the first regular expression that matches wins, so the longest prefix comes first
    for prefix in sorted(targets, key=len, reverse=True):
        pattern = "/" if prefix == "/" else f"~ ^{prefix}(?:/|$)"
        lines.append(f'    location {pattern} {{ set $room "{targets[prefix]}"; proxy_pass http://$room; }}\n')
    return "".join([*lines, "  }\n}\n"])


def _targets(route: Json) -> Iterator[tuple[str, str]]:
    """Yield each prefix of a route with host:port behind it."""
    for rule in route["spec"]["rules"]:
        if rule.get("filters") or len(rule["backendRefs"]) != 1:
            raise UnknownRoute(str(rule))
        backend = rule["backendRefs"][0]
        namespace = backend.get("namespace", route["metadata"]["namespace"])
        target = f"{backend['name']}.{namespace}.svc.cluster.local:{backend['port']}"
        for match in rule["matches"]:
            path = match.get("path", {})
            if set(match) != {"path"} or path.get("type") != "PathPrefix":
                raise UnknownRoute(str(match))
            yield path["value"], target


def set_up(kube: Kube, namespace: str) -> None:
    """Start the gateway for the HTTPRoutes of a namespace, or bring it up to date, and wait until it serves."""
    text = configuration(kube.items("httproutes", "-n", namespace))
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gateway", "namespace": NAMESPACE}}
    made = objects(MANIFESTS / "gateway.yaml")
    for found in made:
        if found["kind"] == "Deployment":
            # other routes are another pod
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            found["spec"]["template"]["metadata"]["annotations"] = {"korrigo.io/routes": digest}
    kube.apply([settings | {"data": {"nginx.conf": text}}, *made])
    kube.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/gateway", "--timeout=180s", seconds=200)
