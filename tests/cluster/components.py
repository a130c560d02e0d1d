"""The programs of the node: their command lines, and the configuration files that they read.

`cluster.node` has them written outside the namespaces; `cluster.first_process` starts what is listed inside. Settings
that look odd were each paid for (operations.md 5).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from cluster.plan import (
    API_PORT,
    CONFIG_RELOADER_IMAGE,
    DNS_PORT,
    DNS_SERVICE_ADDRESS,
    DOMAIN,
    ISSUER,
    NODE,
    NODE_ADDRESS,
    PAUSE_IMAGE,
    POD_NETWORK,
    SERVICE_NETWORK,
    Plan,
)


@dataclass(frozen=True)
class Component:
    """One program of the node."""

    name: str
    argv: list[str]
    # a file that must exist before it is started
    after: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as the first process reads it."""
        return asdict(self)


def components(plan: Plan) -> list[Component]:
    """Return every program of the node; they may start at once, each waits or is started again."""
    return [
        _etcd(plan),
        _api_server(plan),
        _controller_manager(plan),
        _scheduler(plan),
        Component("containerd", [str(plan.binaries / "containerd"), "--config", str(plan.config / "containerd.toml")]),
        _kubelet(plan),
        Component(
            "kube-proxy", [str(plan.binaries / "kube-proxy"), "--config", str(plan.config / "proxy.json"), "--v=1"]
        ),
        Component("coredns", [str(plan.binaries / "coredns"), "-conf", str(plan.config / "Corefile")]),
        _prometheus_operator(plan),
    ]


def _etcd(plan: Plan) -> Component:
    argv = [str(plan.binaries / "etcd"), "--data-dir", str(plan.data / "etcd")]
    argv += ["--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379"]
    argv += ["--listen-peer-urls", "http://127.0.0.1:2380"]
    # a test cluster does not outlive the machine: no need to wait for the disk
    argv += ["--unsafe-no-fsync", "--log-level", "warn"]
    return Component("etcd", argv)


def _api_server(plan: Plan) -> Component:
    pki = plan.pki
    argv = [str(plan.binaries / "kube-apiserver")]
    argv += [f"--advertise-address={NODE_ADDRESS}", "--bind-address=0.0.0.0", f"--secure-port={API_PORT}"]
    argv += ["--etcd-servers=http://127.0.0.1:2379", f"--service-cluster-ip-range={SERVICE_NETWORK}"]
    argv += ["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true"]
    argv += [f"--client-ca-file={pki}/ca.crt", f"--tls-cert-file={pki}/apiserver.crt"]
    argv += [f"--tls-private-key-file={pki}/apiserver.key", f"--cert-dir={plan.data}/apiserver"]
    argv += [f"--service-account-issuer={ISSUER}", f"--service-account-key-file={pki}/service-accounts.pub"]
    argv += [f"--service-account-signing-key-file={pki}/service-accounts.key"]
    # without the address type, logs and exec ask for the node's name, which no DNS knows
    argv += ["--kubelet-preferred-address-types=InternalIP", f"--kubelet-certificate-authority={pki}/ca.crt"]
    argv += [f"--kubelet-client-certificate={pki}/to-kubelet.crt", f"--kubelet-client-key={pki}/to-kubelet.key"]
    return Component("kube-apiserver", argv)


def _controller_manager(plan: Plan) -> Component:
    pki, kubeconfig = plan.pki, f"{plan.config}/controller-manager.kubeconfig"
    argv = [str(plan.binaries / "kube-controller-manager"), f"--kubeconfig={kubeconfig}"]
    argv += [f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}"]
    argv += [f"--root-ca-file={pki}/ca.crt", f"--service-account-private-key-file={pki}/service-accounts.key"]
    argv += [f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key"]
    argv += ["--use-service-account-credentials=true", "--leader-elect=false", "--bind-address=127.0.0.1"]
    argv += ["--allocate-node-cidrs=false", f"--flex-volume-plugin-dir={plan.data}/volume-plugins"]
    argv += [f"--cert-dir={plan.data}/controller-manager"]
    return Component("kube-controller-manager", argv)


def _scheduler(plan: Plan) -> Component:
    kubeconfig = f"{plan.config}/scheduler.kubeconfig"
    argv = [str(plan.binaries / "kube-scheduler"), f"--kubeconfig={kubeconfig}", "--leader-elect=false"]
    argv += [f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}"]
    argv += ["--bind-address=127.0.0.1", f"--cert-dir={plan.data}/scheduler"]
    return Component("kube-scheduler", argv)


def _kubelet(plan: Plan) -> Component:
    argv = [str(plan.binaries / "kubelet"), f"--config={plan.config}/kubelet.json"]
    argv += [f"--kubeconfig={plan.config}/kubelet.kubeconfig", f"--hostname-override={NODE}"]
    argv += [f"--node-ip={NODE_ADDRESS}", f"--root-dir={plan.data}/kubelet", f"--cert-dir={plan.data}/kubelet-pki"]
    return Component("kubelet", argv)


def _prometheus_operator(plan: Plan) -> Component:
    pki = plan.pki
    argv = [str(plan.binaries / "prometheus-operator"), f"--apiserver=https://{NODE_ADDRESS}:{API_PORT}"]
    argv += [f"--ca-file={pki}/ca.crt", f"--cert-file={pki}/prometheus-operator.crt"]
    argv += [f"--key-file={pki}/prometheus-operator.key", f"--prometheus-config-reloader={CONFIG_RELOADER_IMAGE}"]
    # its limit of a hundredth of a core would make every configuration a matter of minutes
    argv += ["--config-reloader-cpu-limit=0", "--config-reloader-memory-limit=0"]
    argv += ["--web.listen-address=127.0.0.1:8380", f"--cluster-domain={DOMAIN}"]
    # it looks once, at its start, which custom kinds there are
    return Component("prometheus-operator", argv, after=str(plan.addons))


def write_configuration(plan: Plan) -> None:
    """Write every configuration file, and the list of components for the first process."""
    cni = plan.config / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-pods.conflist").write_text(json.dumps(_pod_network(plan)))
    (plan.config / "containerd.toml").write_text(_containerd(plan))
    (plan.config / "kubelet.json").write_text(json.dumps(_kubelet_configuration(plan)))
    (plan.config / "proxy.json").write_text(json.dumps(_proxy_configuration(plan)))
    (plan.config / "Corefile").write_text(_corefile(plan))
    # pods whose dnsPolicy is Default get the node's: there is no name to be had outside the cluster
    (plan.config / "resolv.conf").write_text(f"nameserver {DNS_SERVICE_ADDRESS}\n")
    listed = [component.as_json() for component in components(plan)]
    (plan.config / "components.json").write_text(json.dumps(listed, indent=2))


def _pod_network(plan: Plan) -> dict[str, Any]:
    # ptp and not bridge: every packet between pods is routed by the node, so that an answer of a pod to a Service's
    # client comes back through the address translation (a bridge needs br_netfilter for that), and the node's
    # connection table sees every edge
    pods: dict[str, Any] = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(plan.data / "pod-addresses"),
            "ranges": [[{"subnet": POD_NETWORK}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [pods]}


def _containerd(plan: Plan) -> str:
    folder = plan.data / "containerd"
    return f"""version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "{plan.containerd_socket}"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
  # without CAP_SYS_RESOURCE a lower score is refused, and runc says only "can't get final child's PID from pipe"
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_cdi = false
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{plan.binaries}/runc"
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plan.binaries}/cni"]
    conf_dir = "{plan.config}/cni"
"""


def _kubelet_configuration(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{plan.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{plan.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{plan.pki}/kubelet-server.key",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": f"{plan.config}/resolv.conf",
        "containerRuntimeEndpoint": f"unix://{plan.containerd_socket}",
        "podLogsDir": f"{plan.data}/pod-logs",
        "volumePluginDir": f"{plan.data}/volume-plugins",
        "healthzBindAddress": "127.0.0.1",
        # the machine: perhaps cgroup v1, swap, no right to change limits, scores or the kernel's settings
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": plan.cgroup,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        # a full disk is a test of the product, not of kubelet
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        # what is killed twenty times in some minutes, on purpose, must not wait longer and longer for its next start
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        "maxPods": 100,
        # the figures of `helm test` and of the operator are about the product, not about kubelet's own pace
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    }


def _proxy_configuration(plan: Plan) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE,
        "clusterCIDR": POD_NETWORK,
        "clientConnection": {"kubeconfig": f"{plan.config}/proxy.kubeconfig"},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
        # the connection table's size belongs to the machine, and may not be set from a namespace
        "conntrack": {"maxPerCore": 0},
    }


def _corefile(plan: Plan) -> str:
    return f"""{DOMAIN}:{DNS_PORT} in-addr.arpa:{DNS_PORT} {{
  bind {NODE_ADDRESS}
  errors
  kubernetes {DOMAIN} in-addr.arpa {{
    kubeconfig {plan.config}/dns.kubeconfig
    ttl 5
  }}
}}
.:{DNS_PORT} {{
  bind {NODE_ADDRESS}
  errors
  ready 127.0.0.1:8181
  # nothing else has a name: said at once, instead of after a timeout
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""
